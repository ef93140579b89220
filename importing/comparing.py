"""Numbers of an imported model against those of the package that it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from ase.stress import voigt_6_to_full_3x3_stress
from numpy.typing import NDArray

from triforces_deploy.artifact import Parity
from triforces_deploy.calculator import TriForcesCalculator
from triforces_deploy.eager import as_trained
from triforces_deploy.errors import UserError

from .imported import Imported

Results = dict[str, NDArray[np.float64]]
"""Energy per atom, forces and, where there is a volume, stress."""


def results_of(made: Imported, atoms: Atoms) -> Results:
    """Our own."""
    calculator = TriForcesCalculator(as_trained(made.model), skin=0.0)
    calculator.calculate(atoms)
    results = {"energy": np.array(calculator.results["energy"] / len(atoms)), "forces": calculator.results["forces"]}
    if "stress" in calculator.results:
        results["stress"] = voigt_6_to_full_3x3_stress(calculator.results["stress"])
    return results


def few_structures(elements: tuple[str, ...]) -> list[Atoms]:
    """A crystal, a skewed one with two elements, and a molecule, none of them with two equal distances."""
    crystal = bulk(elements[0], "fcc", a=4.1, cubic=True)
    skewed = bulk("Si", "diamond", a=5.4)
    skewed.symbols[:] = [elements[0], elements[-1]]
    shape = molecule("CH4")
    shape.symbols[:] = [elements[k % len(elements)] for k in range(len(shape))]
    for seed, atoms in enumerate((crystal, skewed, shape)):
        atoms.rattle(0.05, seed=seed)
    return [crystal, skewed, shape]


def compared(path: Path, pairs: Sequence[tuple[Results, Results]], reference: str, tolerance: float) -> Parity:
    """Largest differences over the largest values of all structures that both have the quantity of.

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
        values = [(a[quantity], b[quantity]) for a, b in pairs if quantity in a and quantity in b]
        scale = max((float(np.abs(b).max()) for _, b in values), default=0.0)
        worst[quantity] = max((float(np.abs(a - b).max()) for a, b in values), default=0.0) / (scale or 1.0)
    for quantity, value in worst.items():
        if not value <= tolerance:
            raise UserError(f"{path}: imported {quantity} differ from {reference} by {value:.2e} relative; report this model")
    return Parity("imported", reference, len(pairs), **worst, tolerance=tolerance)
