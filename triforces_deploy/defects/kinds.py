"""What each kind of defect does to the atoms around the one it is put on.

A kind looks at the perfect crystal and returns an :class:`Edit`, or None where its place does not suit. Places are found
from the atoms themselves, so strained and rotated crystals are as good as ideal ones.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

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


class Kind(Protocol):
    """A defect that can be put on an atom."""

    @property
    def name(self) -> str:
        """As the user writes it."""

    def suits(self, numbers: NDArray[np.int64]) -> Mask:
        """Of which atoms, given their atomic numbers (N,), the defect may have its centre; (N,)."""

    def make(self, around: Surroundings, k: int, free: Mask, rng: np.random.Generator) -> Edit | None:
        """The change with atom k as centre; None where there is no room. ``free`` (N,) tells untouched atoms."""


@dataclasses.dataclass(frozen=True)
class Term:
    """One member of a complex, in the notation of Kröger and Vink: V_Si, Ge_Si, Si_i."""

    species: str
    """'V' or an element."""
    site: str = ""
    """The element that is replaced; '' for any, 'i' for none."""
    hole: Site = "hole"
    """Where an interstitial sits."""

    @property
    def name(self) -> str:
        if self.site == "i":
            return f"{self.species}_i" if self.hole == "hole" else f"{self.species}_i_{self.hole}"
        return f"{self.species}_{self.site}" if self.site else self.species

    def suits(self, numbers: NDArray[np.int64]) -> Mask:
        """As :meth:`Kind.suits`; an element does not replace itself."""
        if self.site == "i":
            return np.ones(len(numbers), dtype=bool)
        own = numbers == number_of(self.site) if self.site else np.ones(len(numbers), dtype=bool)
        return own if self.species == VACANCY else own & (numbers != number_of(self.species))


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


@dataclasses.dataclass(frozen=True)
class Complex:
    """Neighbouring vacancies, substituents and interstitials; a single one is the simplest case.

    The first term sits on the chosen atom, each other on the nearest suitable atom (or in a hole beside it), among equally
    near ones on the one nearest to the middle, so that n vacancies are a compact cluster.
    """

    terms: tuple[Term, ...]
    within: float = 8.0
    """Å. How far from the centre a member may be."""

    @property
    def name(self) -> str:
        return "+".join(term.name for term in self.terms)

    def suits(self, numbers: NDArray[np.int64]) -> Mask:
        return self.terms[0].suits(numbers)

    def make(self, around: Surroundings, k: int, free: Mask, rng: np.random.Generator) -> Edit | None:
        draft = Draft(around, free)
        centre = around.atoms.positions[k].copy()
        members = [np.zeros(3)]  # (3,) from the centre
        labels = []
        for n, term in enumerate(self.terms):
            choice = [(k, np.zeros(3))] if n == 0 else self._next(draft, centre, members, term, rng)
            for j, place in choice:
                label = self._add(draft, j, term, rng)
                if label:
                    labels.append(label)
                    members.append(place)
                    break
            else:
                return None
        if len(self.terms) == 1 and draft.added:
            centre = draft.added[0][1]
        return draft.edit("+".join(labels), centre)

    def _add(self, draft: Draft, j: int, term: Term, rng: np.random.Generator) -> str:
        """Label of the change; empty where there is no room, the draft then as it was."""
        if term.site != "i":
            return draft.replace(j, term.species)
        claimed, added, moved = set(draft.claimed), list(draft.added), dict(draft.moved)
        if draft.insert(j, term.species, term.hole, rng) and self._apart(draft):
            return term.name
        draft.claimed, draft.added, draft.moved = claimed, added, moved
        return ""

    def _apart(self, draft: Draft) -> bool:
        number, last = draft.added[-1]
        reach = [CLOSEST * (covalent_radii[number] + covalent_radii[n]) for n, _ in draft.added[:-1]]
        return all(np.linalg.norm(last - place) > r for (_, place), r in zip(draft.added[:-1], reach, strict=True))

    def _next(
        self, draft: Draft, centre: Floats, members: list[Floats], term: Term, rng: np.random.Generator
    ) -> list[tuple[int, Floats]]:
        """Atoms for the next member and where they are from the centre, the best first."""
        index, vectors = draft.around.near(centre, self.within)
        suited = term.suits(draft.numbers[index]) & np.array([draft.allows(int(j)) for j in index], dtype=bool)
        index, vectors = index[suited], vectors[suited]
        if len(index) == 0:
            return []
        nearest = np.linalg.norm(vectors[:, None] - np.array(members), axis=2).min(axis=1)
        middle = np.linalg.norm(vectors - np.mean(members, axis=0), axis=1)
        shell = nearest > 1.1 * nearest.min()
        order = np.lexsort((rng.random(len(index)), np.round(middle, 3), shell))[:24]
        return [(int(index[m]), vectors[m]) for m in order]


@dataclasses.dataclass(frozen=True)
class Antisite:
    """An element of a compound on the place of the other."""

    elements: tuple[str, ...]
    """The two of the compound."""
    name: str = "antisite"

    def suits(self, numbers: NDArray[np.int64]) -> Mask:
        return np.isin(numbers, [number_of(e) for e in self.elements])

    def make(self, around: Surroundings, k: int, free: Mask, rng: np.random.Generator) -> Edit | None:
        own = chemical_symbols[around.atoms.numbers[k]]
        (other,) = (e for e in self.elements if e != own)
        return Complex((Term(other, own),)).make(around, k, free, rng)


@dataclasses.dataclass(frozen=True)
class SplitVacancy:
    """An atom half-way between two neighbouring vacant sites."""

    species: str

    @property
    def name(self) -> str:
        return f"split_{self.species}"

    def suits(self, numbers: NDArray[np.int64]) -> Mask:
        return np.ones(len(numbers), dtype=bool)

    def make(self, around: Surroundings, k: int, free: Mask, rng: np.random.Generator) -> Edit | None:
        draft = Draft(around, free)
        index, vectors = around.around(k, 6.0)
        distance = np.linalg.norm(vectors, axis=1)
        options = [m for m in np.flatnonzero(distance < 1.1 * distance.min(initial=np.inf)) if draft.allows(int(index[m]))]
        if not options:
            return None
        m = int(rng.choice(options))
        draft.replace(k, VACANCY)
        draft.replace(int(index[m]), VACANCY)
        middle = around.atoms.positions[k] + vectors[m] / 2
        draft.added.append((number_of(self.species), middle))
        return draft.edit(self.name, middle)


@dataclasses.dataclass(frozen=True)
class Frenkel:
    """An atom moved from its site to a hole some way off."""

    species: str
    distance: float = 6.0
    """Å. From the vacancy to the atom beside the hole, ± 1.5 Å."""

    @property
    def name(self) -> str:
        return f"frenkel_{self.species}_{self.distance:g}"

    def suits(self, numbers: NDArray[np.int64]) -> Mask:
        return np.asarray(numbers == number_of(self.species))

    def make(self, around: Surroundings, k: int, free: Mask, rng: np.random.Generator) -> Edit | None:
        index, vectors = around.around(k, self.distance + 1.5)
        bases = np.unique(index[(np.linalg.norm(vectors, axis=1) > self.distance - 1.5) & (index != k)])
        for j in rng.permutation(bases)[:8]:
            draft = Draft(around, free)
            draft.replace(k, VACANCY)
            if draft.insert(int(j), self.species, "hole", rng):
                return draft.edit(self.name, around.atoms.positions[k].copy())
        return None


@dataclasses.dataclass(frozen=True)
class Void:
    """All atoms within a radius of one, itself included, taken away."""

    radius: float
    """Å."""

    @property
    def name(self) -> str:
        return f"void_{self.radius:g}"

    def suits(self, numbers: NDArray[np.int64]) -> Mask:
        return np.ones(len(numbers), dtype=bool)

    def make(self, around: Surroundings, k: int, free: Mask, rng: np.random.Generator) -> Edit | None:
        del rng
        index, _ = around.near(around.atoms.positions[k], self.radius)
        if len(np.unique(index)) < len(index):
            raise UserError(f"a void of {self.radius:g} Å meets its own image; use a larger cell or a smaller radius")
        draft = Draft(around, free)
        for j in index:
            draft.replace(int(j), VACANCY)
        return draft.edit(self.name, around.atoms.positions[k].copy())


def number_of(element: str) -> int:
    """Atomic number; UserError for what is no element."""
    if atomic_numbers.get(element, 0) == 0:
        raise UserError(f"'{element}' is no chemical symbol; expected one such as Si")
    return int(atomic_numbers[element])
