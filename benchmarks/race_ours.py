"""Ours as a contender of benchmarks/race.py: the rival's model imported and exported; for Orb one of the same sizes."""

from __future__ import annotations

import fcntl
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


def make(folder: Path) -> None:
    """Nothing is made beforehand: the first process of a form makes its file, the others find it."""


def artifact(form: str, folder: Path, precision: str) -> Path:
    """The rival's model with this compiled form."""
    path = folder / f"{form}-{precision}.pt"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_file():
            if folder.name == "orb":
                fresh_orb(folder / "public.ckpt")
            else:
                import_file(folder.name, folder / "public.model", folder / "public.ckpt")
            backends = () if form == "eager" else (form,)
            export(folder / "public.ckpt", path, ExportOptions(precision=precision, backends=backends))
    return path


def fresh_orb(path: Path) -> None:
    """Orb-v3 as released, with its repulsion, random weights and a sum over atoms in place of the mean."""
    torch.manual_seed(0)
    config = ModelConfig(("Si",), 6.0, BackboneConfig("orb_v3"), None, None, (256,), zbl=True)
    checkpoint.save(path, Model(config), {})


def prepare(form: str, folder: Path, precision: str, atoms: Atoms) -> Evaluate:
    path = artifact("eager" if form == "blocks" else form, folder, precision)
    if form == "blocks":
        os.environ[VARIABLE] = "16MiB"  # what is kept of all blocks for the backward pass: next to nothing
    keep_freed_memory()
    potential = load(path)
    assert potential.backend == ("eager" if form == "blocks" else form), potential.notes
    graph = graph_from_atoms(atoms, potential.facts.cutoff)

    def evaluate() -> tuple[float, np.ndarray]:
        found = potential.evaluate(graph)
        derivatives.stress(found.edge_forces, graph)
        return float(found.energies.sum()), derivatives.forces(found.edge_forces, graph).numpy()

    return evaluate


if __name__ == "__main__":
    serve(make, prepare)
