"""What each kind of defect does to the atoms around the one it is put on.

A kind looks at the perfect crystal and returns an :class:`Edit`, or None where its place does not suit. Places are found
from the atoms themselves, so strained and rotated crystals are as good as ideal ones.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from numpy.typing import NDArray

from triforces_deploy.defects.edits import CLOSEST, VACANCY, Draft, Edit, Mask, number_of
from triforces_deploy.defects.holes import Site
from triforces_deploy.defects.surroundings import Floats, Surroundings
from triforces_deploy.errors import UserError


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
