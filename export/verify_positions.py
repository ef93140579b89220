"""Is the self-contained ONNX form the same as what was trained? Compared on structures, since it takes no graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from triforces_deploy import derivatives
from triforces_deploy.artifact import Artifact, potential
from triforces_deploy.errors import UserError
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.onnx_positions import NAME, PositionsModel, from_artifact
from triforces_deploy.potential import Potential

from .verify import Deviation, compare


def compare_positions(candidate: PositionsModel, reference: Potential, structures: Mapping[str, Atoms]) -> list[Deviation]:
    """Evaluate both on every structure that the frozen images cover.

    Args:
        candidate: what will run.
        reference: what it must equal; same cutoff.
        structures: name → atoms.

    Returns:
        One row per structure and quantity, as :func:`verify.compare` gives.

    Raises:
        UserError: the graph gives a number for a structure that it must refuse, or covers none of them.
    """
    rows = []
    for name, atoms in structures.items():
        if len(atoms) > 0 and not covers(candidate, atoms):
            if not np.isnan(candidate.unchecked(atoms).energy):
                raise UserError(f"onnx-positions gives an energy for '{name}', whose neighbours it does not all see; report it")
            continue
        graph = graph_from_atoms(atoms, candidate.facts.cutoff)
        new, old = candidate.evaluate(atoms), reference.evaluate(graph)
        pairs = {
            "energy": (new.energies, old.energies.numpy()),
            "forces": (new.forces, derivatives.forces(old.edge_forces, graph).numpy()),
            "stress": (new.virial, derivatives.virial(old.edge_forces, graph)[0].numpy()),
        }
        rows += [Deviation(q, name, len(atoms), _largest(x - y), _largest(y)) for q, (x, y) in pairs.items()]
    if not rows:
        raise UserError("onnx-positions covers none of the structures; export again with more --images")
    return rows


def covers(candidate: PositionsModel, atoms: Atoms) -> bool:
    """Whether the frozen images reach every neighbour of a structure, and its elements are known."""
    try:
        candidate.check(atoms)
    except UserError:
        return False
    return True


def _largest(values: NDArray[Any]) -> float:
    return float(np.abs(values).max()) if values.size else 0.0


def open_form(artifact: Artifact, name: str, backend: str, trusted: bool | None = None) -> Potential | PositionsModel:
    """Any form of an artifact, made to run; arguments and errors of ``artifact.potential``."""
    return from_artifact(artifact, name) if backend == NAME else potential(artifact, name, backend, trusted)


def compare_form(
    candidate: Potential | PositionsModel, reference: Potential, structures: Mapping[str, Atoms]
) -> list[Deviation]:
    """:func:`verify.compare` for any form; the one that takes no graph by :func:`compare_positions`."""
    if isinstance(candidate, PositionsModel):
        return compare_positions(candidate, reference, structures)
    return compare(candidate, reference, structures)
