"""Labelled structures and a recipe that train in a second; labels are ASE's Lennard-Jones, which has nothing of ours."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from ase import Atoms
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from triforces_deploy import checkpoint
from triforces_deploy.config import as_dict, read
from triforces_deploy.training import loop
from triforces_deploy.training.loop import TrainResult
from triforces_deploy.training.reading import read_frames
from triforces_deploy.training.recipe import Recipe
from triforces_deploy.training.structures import Frame

MODEL: dict[str, Any] = {
    "elements": ["Si", "Ge"],
    "cutoff": 3.6,
    "backbone": {"name": "orb_v3", "options": {"latent": 16, "n_layers": 1, "mlp_hidden": 16, "mlp_depth": 1, "l_max": 1}},
    "composition": {"width": 8, "heads": 2, "layers": 1, "hidden": 8},
    "structure": {"width": 8, "hidden": 8, "n_radial": 3, "n_channels": 2, "l_max": 1, "scales": [1.0], "layers": 1},
    "head_hidden": [16],
}


def labelled(atoms: Atoms, **info: Any) -> Atoms:
    """A copy with energy, forces and stress, as a file of labels has it."""
    at_work = atoms.copy()
    at_work.calc = LennardJones(sigma=2.1, epsilon=0.3, rc=3.6, smooth=True, ro=2.8)
    out: Atoms = atoms.copy()
    forces, stress = at_work.get_forces(), at_work.get_stress()
    out.calc = SinglePointCalculator(out, energy=at_work.get_potential_energy(), forces=forces, stress=stress)
    out.info.update(info)
    return out


def structures(trajectories: int = 6, frames: int = 4, seed: int = 0) -> list[Atoms]:
    """Rattled crystals of 8 atoms; each trajectory has its own strain and elements."""
    rng = np.random.default_rng(seed)
    out = []
    for k in range(trajectories):
        start = bulk("Si", "diamond", 5.43 * rng.uniform(0.98, 1.02), cubic=True)
        start.numbers[rng.permutation(8)[: k % 4]] = 32
        for _ in range(frames):
            atoms = start.copy()
            atoms.positions += rng.normal(0, 0.08, (8, 3))
            out.append(labelled(atoms, trajectory=f"run {k}"))
    return out


def labels(folder: Path, **how_many: int) -> Path:
    """A file of :func:`structures`."""
    path = folder / "labels.extxyz"
    write(path, structures(**how_many), format="extxyz")
    return path


def written(folder: Path, *atoms: Atoms, name: str = "labels.extxyz") -> Path:
    """A file of some structures."""
    write(folder / name, list(atoms), format="extxyz")
    return folder / name


def frames_of(path: Path) -> list[Frame]:
    """What training reads from it for the model above."""
    return read_frames([path], MODEL["elements"], MODEL["cutoff"])


def recipe(path: Path, /, **sections: dict[str, Any]) -> Recipe:
    """A plan of 40 steps with everything that can be resumed wrongly: several passes, validations, states and log lines."""
    plan: dict[str, Any] = {
        "model": MODEL,
        "data": {"files": [str(path)], "validation": 0.2, "test": 0.2},
        "optimiser": {"lr": 3e-3, "warmup": 5, "ema": 0.9},
        "trainer": {
            "steps": 40, "batch_size": 5, "validate_every": 15, "log_every": 4, "save_every": 6, "precision": "float64",
            "device": "cpu", "threads": 1,
        },
        "seed": 3,
    }  # fmt: skip
    for name, section in sections.items():
        plan[name] = {**plan.get(name, {}), **section}
    return read(Recipe, plan, "recipe")


def recipe_file(path: Path, plan: Recipe) -> Path:
    """The plan as a user would hand it over."""
    path.write_text(yaml.safe_dump(as_dict(plan)))
    return path


def train(plan: Recipe, out: Path, resume: bool = True) -> TrainResult:
    return loop.train(plan, out, resume=resume, progress=False)


def log(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open() as stream:
        return list(csv.DictReader(stream))


def column(folder: Path, name: str) -> list[float]:
    return [float(row[name]) for row in log(folder) if row[name]]


def weights(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = checkpoint.load(path)[0].state_dict()
    return found


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
