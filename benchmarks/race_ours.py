"""Ours as a contender of benchmarks/race.py: the rival's model imported and exported; for Orb one of the same sizes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from race_common import Evaluate, serve

from triforces_deploy import checkpoint, derivatives
from triforces_deploy.allocator import keep_freed_memory
from triforces_deploy.artifact import load
from triforces_deploy.config import BackboneConfig, ModelConfig
from triforces_deploy.export.exporting import ExportOptions, export
from triforces_deploy.importing.importing import import_file
from triforces_deploy.memory import VARIABLE
from triforces_deploy.model import Model
from triforces_deploy.neighbours import graph_from_atoms


def make(folder: Path, precision: str, *forms: str) -> None:
    """The rival's model with each compiled form, where it is not there yet."""
    public = folder / "public.ckpt"
    for form in forms:
        out = artifact(folder, form, precision)
        if out.is_file():
            continue
        if not public.is_file():
            import_public(folder, public)
        backends = {"aoti": ("aoti",), "lean": ("aoti",), "torchscript": ("torchscript",)}.get(form, ())
        export(public, out, ExportOptions(precision=precision, backends=backends, lean=form == "lean"))


def import_public(folder: Path, out: Path) -> None:
    kind = folder.name.split("-")[0]
    if kind == "orb":
        fresh_orb(out)
    else:
        import_file(kind, folder / "public.model", out)


def artifact(folder: Path, form: str, precision: str) -> Path:
    return folder / f"{'eager' if form.startswith('blocks') else form}-{precision}.pt"


def fresh_orb(path: Path) -> None:
    """Orb-v3 as released, with its repulsion, random weights and a sum over atoms in place of the mean."""
    torch.manual_seed(0)
    config = ModelConfig(("Si",), 6.0, BackboneConfig("orb_v3"), None, None, (256,), zbl=True)
    checkpoint.save(path, Model(config), {})


def prepare(folder: Path, precision: str, atoms: Atoms, form: str) -> Evaluate:
    _, _, most = form.partition("-")
    os.environ[VARIABLE] = most or "20GiB"  # what is kept for the backward pass stays within it, and so does what runs
    keep_freed_memory()
    potential = load(artifact(folder, form, precision))
    assert potential.backend == {"lean": "aoti"}.get(form, form.split("-")[0].replace("blocks", "eager")), potential.notes
    graph = graph_from_atoms(atoms, potential.facts.cutoff)

    def evaluate() -> tuple[float, np.ndarray]:
        found = potential.evaluate(graph)
        derivatives.stress(found.edge_forces, graph)
        return float(found.energies.sum()), derivatives.forces(found.edge_forces, graph).numpy()

    return evaluate


if __name__ == "__main__":
    serve(make, prepare)
