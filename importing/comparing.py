"""Numbers of an imported model against those of the package that it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from triforces_deploy import derivatives
from triforces_deploy.artifact import Parity
from triforces_deploy.errors import UserError
from triforces_deploy.neighbours import graph_from_atoms

from .imported import Imported

Results = dict[str, NDArray[np.float64]]
"""Energy per atom, forces and, where there is a volume, stress."""


def results_of(made: Imported, atoms: Atoms) -> Results:
    """Our own."""
    graph = graph_from_atoms(atoms, made.model.config.cutoff)
    energies, edge_forces = made.model.run(graph)
    tensors = {
        "energy": energies.sum() / len(atoms),
        "forces": derivatives.forces(edge_forces, graph),
        "stress": derivatives.stress(edge_forces, graph)[0],
    }
    return {key: tensor.numpy() for key, tensor in tensors.items()}


def compared(path: Path, pairs: Sequence[tuple[Results, Results]], reference: str, tolerance: float) -> Parity:
    """Largest differences over the largest values of all structures.

    Args:
        path: the file, for the message.
        pairs: ours and theirs for each structure.
        reference: the package and its version.
        tolerance: relative.

    Raises:
        UserError: they differ by more.
    """
    worst = {}
    for quantity in ("energy", "forces", "stress"):
        values = [(a[quantity], b[quantity]) for a, b in pairs if quantity in b]
        scale = max(float(np.abs(b).max()) for _, b in values)
        worst[quantity] = max(float(np.abs(a - b).max()) for a, b in values) / (scale or 1.0)
    for quantity, value in worst.items():
        if not value <= tolerance:
            raise UserError(f"{path}: imported {quantity} differ from {reference} by {value:.2e} relative; report this model")
    return Parity("imported", reference, len(pairs), **worst, tolerance=tolerance)
