"""Ours as a contender of benchmarks/race.py: the rival's model imported and exported."""

from __future__ import annotations

import fcntl
from pathlib import Path

import numpy as np
from ase import Atoms
from race_common import Evaluate, serve

from triforces_deploy import derivatives
from triforces_deploy.allocator import keep_freed_memory
from triforces_deploy.artifact import load
from triforces_deploy.export.exporting import ExportOptions, export
from triforces_deploy.importing.importing import import_file
from triforces_deploy.neighbours import graph_from_atoms


def make(folder: Path) -> None:
    """Nothing is made beforehand: the first process of a form makes its file, the others find it."""


def artifact(form: str, folder: Path, precision: str) -> Path:
    """The rival's model with this compiled form."""
    path = folder / f"{form}-{precision}.pt"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_file():
            import_file(folder.name, folder / "public.model", folder / "public.ckpt")
            backends = () if form == "eager" else (form,)
            export(folder / "public.ckpt", path, ExportOptions(precision=precision, backends=backends))
    return path


def prepare(form: str, folder: Path, precision: str, atoms: Atoms) -> Evaluate:
    path = artifact(form, folder, precision)
    keep_freed_memory()
    potential = load(path)
    assert potential.backend == form, potential.notes
    graph = graph_from_atoms(atoms, potential.facts.cutoff)

    def evaluate() -> tuple[float, np.ndarray]:
        energies, edge_forces = potential.evaluate(graph)
        derivatives.stress(edge_forces, graph)
        return float(energies.sum()), derivatives.forces(edge_forces, graph).numpy()

    return evaluate


if __name__ == "__main__":
    serve(make, prepare)
