"""What one defect changes, and how such a change is put together beside the others."""

from __future__ import annotations

import dataclasses

import numpy as np
from ase.data import atomic_numbers, chemical_symbols, covalent_radii
from numpy.typing import NDArray

from triforces_deploy.defects.holes import SITES, Site, insertion
from triforces_deploy.defects.surroundings import Floats, Surroundings
from triforces_deploy.errors import UserError

Mask = NDArray[np.bool_]

ROOM = 0.7
"""Smallest allowed distance of an atom added by the bonds of its neighbours, in sums of covalent radii."""
CLOSEST = 0.55
"""The same in the holes of any crystal, which are the widest places there are: metals are denser than diamond."""

VACANCY = "V"


@dataclasses.dataclass(frozen=True)
class Edit:
    """What one defect changes."""

    label: str
    centre: Floats
    """(3,) Å."""
    removed: tuple[int, ...] = ()
    changed: tuple[tuple[int, int], ...] = ()
    """Atom and its new atomic number."""
    moved: tuple[tuple[int, Floats], ...] = ()
    added: tuple[tuple[int, Floats], ...] = ()
    """Atomic number and place."""
    claimed: frozenset[int] = frozenset()
    """Atoms that no other defect may touch: those above, and the ones that an added atom borders on."""


class Draft:
    """An edit in the making."""

    def __init__(self, around: Surroundings, free: Mask) -> None:
        self.around, self.free = around, free
        self.numbers, self.positions = around.atoms.numbers, around.atoms.positions
        self.removed: list[int] = []
        self.changed: dict[int, int] = {}
        self.moved: dict[int, Floats] = {}
        self.added: list[tuple[int, Floats]] = []
        self.claimed: set[int] = set()

    def allows(self, k: int) -> bool:
        """Whether atom k is still as it was."""
        return bool(self.free[k]) and k not in self.claimed

    def replace(self, k: int, species: str) -> str:
        """Take atom k away or turn it into another; returns the label."""
        self.claimed.add(k)
        if species == VACANCY:
            self.removed.append(k)
        else:
            self.changed[k] = number_of(species)
        return f"{species}_{chemical_symbols[self.numbers[k]]}"

    def insert(self, k: int, species: str, site: Site, rng: np.random.Generator) -> bool:
        """Add an atom at a hole beside atom k; False where the hole is not there or has no room."""
        found = insertion(self.around, k, site, rng)
        if found is None:
            return False
        shift, step = found
        place = self.positions[k] + step
        if shift is not None:
            self.moved[k] = self.positions[k] + shift
        self.claimed.add(k)
        border, vectors = self.around.near(place, float(1.1 * np.linalg.norm(step)))
        self.claimed.update(int(j) for j, v in zip(border, vectors, strict=True) if np.linalg.norm(v) > 1e-6)
        self.added.append((number_of(species), place))
        room = ROOM if site in SITES else CLOSEST
        return self._room(place, number_of(species), room, but=k if shift is not None else None) and (
            shift is None or self._room(self.moved[k], int(self.numbers[k]), room, but=k)
        )

    def edit(self, label: str, centre: Floats) -> Edit | None:
        """The finished edit; None if it touches what another defect has claimed."""
        if not all(self.free[k] for k in self.claimed):
            return None
        changed, moved = tuple(self.changed.items()), tuple(self.moved.items())
        return Edit(label, centre, tuple(self.removed), changed, moved, tuple(self.added), frozenset(self.claimed))

    def _room(self, place: Floats, number: int, room: float, but: int | None) -> bool:
        reach = room * (covalent_radii[number] + float(covalent_radii[np.unique(self.numbers)].max()))
        index, vectors = self.around.near(place, reach)
        for k, vector in zip(index.tolist(), vectors, strict=True):
            ratio = np.linalg.norm(vector) / (covalent_radii[number] + covalent_radii[self.numbers[k]])
            if ratio < room and k not in self.removed and k != but:
                return False
        return True


def number_of(element: str) -> int:
    """Atomic number; UserError for what is no element."""
    if atomic_numbers.get(element, 0) == 0:
        raise UserError(f"'{element}' is no chemical symbol; expected one such as Si")
    return int(atomic_numbers[element])
