"""Does the uncertainty of atoms follow the errors, and what does it cost?

    OMP_NUM_THREADS=1 python benchmarks/uncertainty.py [--steps 2000] [--trajectories 40] [--backend aoti]

Labels defects in silicon with a Tersoff potential, trains the demo model on them for some steps, calibrates its last layer,
and compares the predicted uncertainty with the true errors on structures like those of training and on others. Then times
one evaluation with and without it, in turn. One JSON line for each.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, diamond100
from ase.io import read

from triforces_deploy import artifact, checkpoint, derivatives
from triforces_deploy.export.exporting import ExportOptions, export
from triforces_deploy.model import Model
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.potential import Potential
from triforces_deploy.training.evaluate import chosen
from triforces_deploy.training.labels import LabelConfig, label
from triforces_deploy.training.loop import train
from triforces_deploy.training.reading import read_frames
from triforces_deploy.training.recipe import load_recipe
from triforces_deploy.training.reference import Reference
from triforces_deploy.training.uncertainty import add_uncertainty

REPEATS = 15


def trained(folder: Path, steps: int, trajectories: int) -> tuple[Path, Path]:
    """Labels and the best checkpoint, before calibration."""
    labels = folder / "labels.extxyz"
    label(LabelConfig(trajectories=trajectories), labels, progress=False)
    recipe = load_recipe("demo", [labels])
    trainer = dataclasses.replace(recipe.trainer, steps=steps, validate_every=min(steps, recipe.trainer.validate_every))
    train(dataclasses.replace(recipe, trainer=trainer), folder / "run", progress=False)
    return labels, folder / "run" / "best.ckpt"


def strangers(reference: Reference) -> dict[str, list[Atoms]]:
    """Structures by what training has not seen in them; the first kind it has."""
    crystal = bulk("Si", "diamond", 5.43, cubic=True).repeat(2)

    def shaken(amplitude: float, scale: float = 1.0) -> list[Atoms]:
        found = []
        for seed in range(4):
            atoms = crystal.copy()
            atoms.set_cell(atoms.cell * scale, scale_atoms=True)
            atoms.rattle(amplitude, seed=seed)
            found.append(atoms)
        return found

    slab = diamond100("Si", (2, 2, 8), a=5.43, vacuum=8.0)
    slab.pbc = True
    alloy = shaken(0.05)
    for atoms in alloy:
        atoms.symbols[::2] = "Ge"
    return {
        "crystal, shaken by 0.05 Å": shaken(0.05),
        "crystal, shaken by 0.2 Å": shaken(0.2),
        "crystal, shaken by 0.4 Å": shaken(0.4),
        "compressed by 10 %": shaken(0.05, 0.9),
        "stretched by 10 %": shaken(0.05, 1.1),
        "surface": [slab],
        "half germanium": alloy,
        "liquid, 4000 K": reference.dynamics(crystal, 4000.0, 4, 500, seed=1, langevin=True),
    }


def row(kind: str, potential: Potential, model: Model, labelled: list[Atoms]) -> dict[str, object]:
    """Uncertainty beside errors; energies of atoms have no truth, so those of structures and forces are compared."""
    sigma, force, energy, predicted = [], [], [], []
    for atoms in labelled:
        graph = graph_from_atoms(atoms, potential.facts.cutoff)
        found = potential.evaluate(graph)
        assert found.uncertainty is not None
        sigma.append(found.uncertainty.numpy())
        force.append(derivatives.forces(found.edge_forces, graph).numpy() - atoms.get_forces())
        features = model.head.features(list(model.embeddings(graph).values())).to(torch.float64).sum(0)
        assert model.spread is not None
        predicted.append(float((features @ model.spread).norm()) / len(atoms))
        energy.append(abs(float(found.energies.sum()) - atoms.get_potential_energy()) / len(atoms))
    flat = np.concatenate(sigma)
    return {
        "structures": kind,
        "sigma_median_meV": round(1000 * float(np.median(flat)), 2),
        "sigma_max_meV": round(1000 * float(flat.max()), 2),
        "energy_std_meV_per_atom": round(1000 * float(np.mean(predicted)), 2),
        "energy_error_meV_per_atom": round(1000 * float(np.mean(energy)), 2),
        "force_rmse_meV_A": round(1000 * float(np.sqrt(np.mean(np.concatenate(force) ** 2))), 1),
    }


def cost(silent: Potential, told: Potential, atoms: Atoms) -> dict[str, float]:
    """Milliseconds of one evaluation, medians of alternating runs."""
    graph = graph_from_atoms(atoms, silent.facts.cutoff)
    times: dict[str, list[float]] = {"without": [], "with": []}
    for k in range(REPEATS + 2):
        for name, potential in (("without", silent), ("with", told)):
            start = time.perf_counter()
            potential.evaluate(graph)
            if k >= 2:
                times[name].append(1000 * (time.perf_counter() - start))
    return {f"{name}_ms": round(statistics.median(values), 3) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--trajectories", type=int, default=40, help="of labelled structures; few tell the cost alone")
    parser.add_argument("--backend", default="aoti")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, Reference("SiCGe.tersoff") as reference:
        folder = Path(name)
        labels, source = trained(folder, options.steps, options.trajectories)
        for silent, path in ((True, "silent.pt"), (False, "told.pt")):
            if not silent:
                print(json.dumps({**dataclasses.asdict(add_uncertainty(source)), "checkpoint": source.name}), flush=True)
            export(source, folder / path, ExportOptions(backends=() if options.backend == "eager" else (options.backend,)))
        told = artifact.load(folder / "told.pt", "eager")
        model, provenance = checkpoint.load(source)
        frames = read_frames([labels], model.config.elements, model.config.cutoff)
        held_out = {f.name for f in chosen(frames, provenance, "test", source)}
        known = [atoms for k, atoms in enumerate(read(labels, ":")) if f"{labels}@{k}" in held_out]
        print(json.dumps(row("held out of training", told, model, known), ensure_ascii=False), flush=True)
        for kind, structures in strangers(reference).items():
            print(
                json.dumps(row(kind, told, model, [reference.labelled(a) for a in structures]), ensure_ascii=False), flush=True
            )
        for cells in (2, 5):
            atoms = bulk("Si", "diamond", 5.43, cubic=True).repeat(cells)
            atoms.rattle(0.05, seed=1)
            pair = [artifact.load(folder / f, options.backend) for f in ("silent.pt", "told.pt")]
            print(json.dumps({"backend": options.backend, "atoms": len(atoms), **cost(pair[0], pair[1], atoms)}), flush=True)


if __name__ == "__main__":
    main()
