"""Many defects at random places of one crystal."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray

from triforces_deploy.defects.edits import CLOSEST, Edit
from triforces_deploy.defects.kinds import Complex, Frenkel, Kind, Void
from triforces_deploy.defects.surroundings import REACH, Floats, Surroundings, crowding, heights
from triforces_deploy.errors import UserError

ATTEMPTS = 300
"""Places without room, one after another, until a kind of defect is given up."""


class Spacing:
    """Points of a periodic cell that keep a distance from each other; O(1) for each."""

    def __init__(self, cell: Floats, apart: float) -> None:
        self.cell, self.apart = cell, apart
        self.bins = np.maximum(1, (heights(cell) / max(apart, 1e-9)).clip(max=1e6).astype(np.int64))
        self.inverse = np.linalg.inv(cell)
        self.taken: dict[tuple[int, ...], list[Floats]] = {}

    def allows(self, point: Floats) -> bool:
        """Whether a point is far enough from all others."""
        if self.apart == 0:
            return True
        place = point @ self.inverse
        place = place - np.floor(place)
        home = np.minimum((place * self.bins).astype(np.int64), self.bins - 1)
        for step in itertools.product((-1, 0, 1), repeat=3):
            image, there = np.divmod(home + step, self.bins)
            for other in self.taken.get(tuple(there), ()):
                if np.linalg.norm((other + image - place) @ self.cell) < self.apart:
                    return False
        return True

    def add(self, point: Floats) -> None:
        """Remember a point."""
        place = point @ self.inverse
        place = place - np.floor(place)
        home = np.minimum((place * self.bins).astype(np.int64), self.bins - 1)
        self.taken.setdefault(tuple(home), []).append(place)


def place(atoms: Atoms, wanted: Sequence[tuple[Kind, int]], rng: np.random.Generator, apart: float = 0.0) -> list[Edit]:
    """Find places for so many defects of each kind; no atom belongs to two of them.

    Args:
        atoms: the perfect crystal.
        wanted: the largest kinds first, as they find room with more difficulty.
        rng: chooses the places.
        apart: Å. Smallest distance between centres, periodic images included.

    Raises:
        UserError: there is no room for all.
    """
    if apart < 0:
        raise UserError(f"a distance of {apart:g} Å between defects was asked for; expected 0 or more")
    width = float(heights(atoms.cell.array).min())
    if apart > width and any(count for _, count in wanted):
        raise UserError(f"defects {apart:g} Å apart do not fit in a cell {width:.1f} Å wide; use a larger cell")
    around = Surroundings(atoms, max([REACH, *(_reach(kind) for kind, _ in wanted)]))
    free, spacing = np.ones(len(atoms), dtype=bool), Spacing(atoms.cell.array, apart)
    edits: list[Edit] = []
    for kind, count in wanted:
        made = list(itertools.islice(_each(kind, around, free, spacing, rng), count))
        if len(made) < count:
            raise UserError(
                f"found room for {len(made)} of {count} defects {kind.name}{f' {apart:g} Å apart' if apart else ''} in "
                f"{len(atoms)} atoms; use a larger cell, fewer defects{', a smaller distance' if apart else ''} or another site"
            )
        edits += made
    return edits


def _each(
    kind: Kind, around: Surroundings, free: NDArray[np.bool_], spacing: Spacing, rng: np.random.Generator
) -> Iterable[Edit]:
    """One edit after another, until no place is left; marks what it takes."""
    failed = 0
    for k in rng.permutation(np.flatnonzero(kind.suits(around.atoms.numbers))):
        if not free[k] or not spacing.allows(around.atoms.positions[k]):
            continue
        edit = kind.make(around, int(k), free, rng)
        if edit is None or not spacing.allows(edit.centre):
            failed += 1
            if failed == ATTEMPTS:
                return
            continue
        failed = 0
        free[list(edit.claimed)] = False
        spacing.add(edit.centre)
        yield edit


def _reach(kind: Kind) -> float:
    """Å. How far a kind looks around its centre."""
    if isinstance(kind, Void):
        return kind.radius
    if isinstance(kind, Frenkel):
        return kind.distance + 1.5
    return kind.within if isinstance(kind, Complex) else 0.0


def apply(atoms: Atoms, edits: Iterable[Edit]) -> Atoms:
    """The crystal with all changes made at once; other arrays of the atoms are dropped, ``info`` is kept."""
    edits = list(edits)
    numbers, positions = atoms.numbers.copy(), atoms.positions.copy()
    keep = np.ones(len(atoms), dtype=bool)
    keep[[k for edit in edits for k in edit.removed]] = False
    for edit in edits:
        for k, number in edit.changed:
            numbers[k] = number
        for k, position in edit.moved:
            positions[k] = position
    added = [pair for edit in edits for pair in edit.added]
    numbers = np.concatenate([numbers[keep], np.array([n for n, _ in added], dtype=numbers.dtype)])
    positions = np.concatenate([positions[keep], np.array([p for _, p in added]).reshape(-1, 3)])
    out = Atoms(numbers=numbers, positions=positions, cell=atoms.cell, pbc=atoms.pbc)
    out.info = dict(atoms.info)
    return out


def check_distances(atoms: Atoms, perfect: float) -> float:
    """Refuse atoms that are too close; returns the smallest distance in sums of covalent radii, inf beyond ``CLOSEST``.

    Args:
        atoms: the finished structure.
        perfect: the same ratio of the perfect crystal; a crystal that is denser than ``CLOSEST`` sets its own limit.
    """
    ratio, i, j, distance = crowding(atoms, CLOSEST)
    if ratio < 0.999 * min(CLOSEST, perfect):
        one, two = (f"{chemical_symbols[atoms.numbers[k]]} {k + 1}" for k in (i, j))
        raise UserError(
            f"{one} and {two} are {distance:.2f} Å apart; use fewer defects, a larger distance between them or another seed"
        )
    return ratio
