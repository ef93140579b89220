"""Importance of the atoms around defects (Dramko et al., ADAPT, eq. 12), with which the loss of forces is weighted.

    m_i = Π_j (1 + λ₁ / (|r_i − r_j|² + λ₂))

over the foreign atoms j, those whose element is not one of the host's, the atom itself included. Distances are to the nearest
image, so that where a cell ends makes no difference. Vacancies do not count: there is no atom.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from ase.geometry import get_distances
from numpy.typing import NDArray

from triforces_deploy.errors import UserError


@dataclasses.dataclass(frozen=True)
class ImportanceConfig:
    """The host and the two constants, which ADAPT has for defects in silicon."""

    host: tuple[str, ...]
    """Symbols of the elements that are not foreign."""
    strength: float = 5.0
    """λ₁, Å²."""
    softening: float = 1.0
    """λ₂, Å²."""

    def check(self, where: str) -> None:
        """UserError for values that make no sense."""
        unknown = [symbol for symbol in self.host if atomic_numbers.get(symbol, 0) == 0]
        if unknown or not self.host:
            raise UserError(f"{where}.host: expected chemical symbols such as [Si], got {list(self.host)}")
        if not (self.strength >= 0 and self.softening > 0):
            raise UserError(f"{where}: strength must be 0 or more and softening above 0")


def importance(atoms: Atoms, config: ImportanceConfig) -> NDArray[np.float64]:
    """(N,) weights, 1 in a pure host."""
    foreign = ~np.isin(atoms.numbers, [atomic_numbers[symbol] for symbol in config.host])
    if not foreign.any():
        return np.ones(len(atoms))
    _, distance = get_distances(atoms.positions, atoms.positions[foreign], cell=atoms.cell, pbc=atoms.pbc)
    weights: NDArray[np.float64] = np.prod(1.0 + config.strength / (distance**2 + config.softening), axis=1)
    return weights
