"""What may be done to a structure before a model sees it; each function gives a new one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.geometry import get_distances
from numpy.typing import NDArray

from triforces_deploy.training.view_config import Strategy

Floats = NDArray[np.float64]


class Structure(NamedTuple):
    """N atoms on their way to becoming a view."""

    numbers: NDArray[np.int64]
    """(N,) The true elements."""
    positions: Floats
    """(N, 3) Å."""
    cell: Floats
    """(3, 3) Å. Rows are lattice vectors."""
    pbc: NDArray[np.bool_]
    """(3,)"""
    noise: Floats
    """(N, 3) Å. What noise has added to the positions."""
    masked: NDArray[np.bool_]
    """(N,)"""
    origin: NDArray[np.int64]
    """(N,) Which atom of the structure as it was; −1 for copies."""


def structure_of(atoms: Atoms) -> Structure:
    """As it is in the file."""
    n = len(atoms)
    return Structure(
        numbers=atoms.numbers.astype(np.int64),
        positions=atoms.positions.astype(np.float64),
        cell=atoms.cell.array.astype(np.float64),
        pbc=np.asarray(atoms.pbc, dtype=bool),
        noise=np.zeros((n, 3)),
        masked=np.zeros(n, dtype=bool),
        origin=np.arange(n),
    )


def tiled(structure: Structure, times: int, most_atoms: int, rng: np.random.Generator) -> Structure:
    """Repeated along one periodic direction, drawn at random; as it was where there is none, or too little room."""
    axes = np.flatnonzero(structure.pbc)
    if len(axes) == 0 or times * len(structure.numbers) > most_atoms:
        return structure
    axis = int(rng.choice(axes))
    shifts = np.arange(times)[:, None, None] * structure.cell[axis]  # (T, 1, 3)
    cell = structure.cell.copy()
    cell[axis] *= times
    copies = np.full((times - 1) * len(structure.numbers), -1)
    return structure._replace(
        numbers=np.tile(structure.numbers, times),
        positions=(structure.positions + shifts).reshape(-1, 3),
        cell=cell,
        noise=np.tile(structure.noise, (times, 1)),
        masked=np.tile(structure.masked, times),
        origin=np.concatenate([structure.origin, copies]),
    )


def with_vacancies(structure: Structure, fraction: float, rng: np.random.Generator) -> Structure:
    """Without some atoms, at least one; two atoms or fewer stay as they are."""
    n = len(structure.numbers)
    gone = min(n - 2, max(1, round(fraction * n)))
    if gone < 1:
        return structure
    kept = np.sort(rng.permutation(n)[gone:])
    per_atom = ("numbers", "positions", "noise", "masked", "origin")
    return structure._replace(**{name: getattr(structure, name)[kept] for name in per_atom})


def strained(structure: Structure, size: float, rng: np.random.Generator) -> Structure:
    """Cell and atoms by 1 + S, S = (G + Gᵀ)/2 with components of G from a normal distribution of this width."""
    g = rng.normal(0.0, size, (3, 3))
    deformation = np.eye(3) + 0.5 * (g + g.T)
    return structure._replace(cell=structure.cell @ deformation, positions=structure.positions @ deformation)


def noisy(structure: Structure, sigma: float, rng: np.random.Generator) -> Structure:
    """Displaced by normal noise whose mean is taken off: what no function of distances can tell is not asked for."""
    noise = rng.normal(0.0, sigma, structure.positions.shape)
    noise -= noise.mean(axis=0)
    return structure._replace(positions=structure.positions + noise, noise=structure.noise + noise)


def turned(structure: Structure, turn: Floats) -> Structure:
    """X → R x, the noise with the rest."""
    return structure._replace(
        positions=structure.positions @ turn.T, cell=structure.cell @ turn.T, noise=structure.noise @ turn.T
    )


def masked(structure: Structure, fraction: float, strategy: Strategy, rng: np.random.Generator) -> Structure:
    """With some atoms' elements hidden.

    'atom' hides each with this probability, 'region' that fraction of the atoms, nearest to one of them, at least one,
    'element' all atoms of one element; where there is but one element, single atoms.
    """
    n = len(structure.numbers)
    kinds = np.unique(structure.numbers)
    if strategy == "element" and len(kinds) > 1:
        hidden = structure.numbers == rng.choice(kinds)
    elif strategy == "region":
        centre = int(rng.integers(n))
        found = get_distances(structure.positions[centre], structure.positions, cell=structure.cell, pbc=structure.pbc)[1]
        hidden = np.zeros(n, dtype=bool)
        hidden[np.argsort(found[0], kind="stable")[: max(1, round(fraction * n))]] = True
    else:
        hidden = rng.random(n) < fraction
    return structure._replace(masked=structure.masked | hidden)
