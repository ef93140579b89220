"""One defect in a structure, as functions Atoms → Atoms; the choice of the place comes from the generator."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import numpy as np
from ase import Atoms
from ase.geometry import get_distances
from numpy.typing import NDArray

from triforces_deploy.defects.edits import VACANCY, number_of
from triforces_deploy.defects.holes import ANYWHERE, SITES, Site
from triforces_deploy.defects.hosts import HOSTS
from triforces_deploy.defects.kinds import Antisite, Complex, Kind, Term
from triforces_deploy.defects.placing import apply
from triforces_deploy.defects.surroundings import Surroundings
from triforces_deploy.errors import UserError


class Near(NamedTuple):
    """Restricts a defect to the neighbourhood of a point, itself left out."""

    point: NDArray[np.float64]
    """(3,) Å."""
    radius: float
    """Å."""


Maker = Callable[[Atoms, np.random.Generator, Near | None], Atoms]
"""One of the functions below, with its element and site filled in by ``functools.partial``."""


def vacancy(atoms: Atoms, rng: np.random.Generator, near: Near | None = None) -> Atoms:
    """Take one atom away."""
    if len(atoms) < 2:
        raise UserError("a vacancy needs a structure of at least 2 atoms")
    return _one(Complex((Term(VACANCY),)), atoms, rng, near, "a vacancy")


def substitution(atoms: Atoms, rng: np.random.Generator, near: Near | None = None, *, element: str) -> Atoms:
    """Turn one atom into another element."""
    number_of(element)
    return _one(Complex((Term(element),)), atoms, rng, near, f"a substitution by {element}")


def antisite(atoms: Atoms, rng: np.random.Generator, near: Near | None = None) -> Atoms:
    """Put an element of a compound on the place of the other."""
    own = HOSTS[atoms.info["host"]].elements if atoms.info.get("host") in HOSTS else ()
    if len(own) != 2:
        raise UserError(f"an antisite needs a host of two elements; this one is {atoms.info.get('host')}; use a substitution")
    return _one(Antisite(own), atoms, rng, near, "an antisite")


def interstitial(
    atoms: Atoms, rng: np.random.Generator, near: Near | None = None, *, element: str, site: Site = "tetrahedral"
) -> Atoms:
    """Add one atom at a site as :func:`triforces_deploy.defects.holes.insertion` knows it.

    Raises:
        UserError: an unknown element or site, or no place of that kind with enough room.
    """
    number_of(element)
    if site not in (*SITES, *ANYWHERE):
        raise UserError(f"interstitial site '{site}' is unknown; choose one of {', '.join((*SITES, *ANYWHERE))}")
    return _one(Complex((Term(element, "i", site),)), atoms, rng, near, f"a {site} interstitial {element}")


def pair(atoms: Atoms, first: Maker, second: Maker, rng: np.random.Generator, within: float = 5.0) -> Atoms:
    """Two defects, the second no farther from the first than ``within`` Å."""
    one = first(atoms, rng, None)
    return second(one, rng, Near(one.info["defect_centre"], within))


def _one(kind: Kind, atoms: Atoms, rng: np.random.Generator, near: Near | None, what: str) -> Atoms:
    """The structure with one defect of a kind, noted in its ``info``; the input is left alone."""
    candidates = np.flatnonzero(kind.suits(atoms.numbers))
    if near is not None and len(candidates):
        _, distance = get_distances(near.point[None], atoms.positions[candidates], cell=atoms.cell, pbc=atoms.pbc)
        candidates = candidates[(distance[0] < near.radius) & (distance[0] > 0.5)]
    if len(candidates) == 0:
        where = "" if near is None else f" within {near.radius:g} Å of the first defect"
        raise UserError(f"no atom is left for {what}{where}; use a larger cell or fewer defects")
    around, free = Surroundings(atoms, 8.0), np.ones(len(atoms), dtype=bool)
    for _ in range(100):
        edit = kind.make(around, int(rng.choice(candidates)), free, rng)
        if edit is not None:
            break
    else:
        raise UserError(f"found no room for {what}; use a larger cell, another site or fewer defects")
    out = apply(atoms, [edit])
    before = cast(str, atoms.info.get("defects", "none"))
    out.info["defects"] = edit.label if before == "none" else f"{before}+{edit.label}"
    out.info["defect_centre"] = edit.centre
    return out
