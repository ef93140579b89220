"""Host crystals of the silicon family and point defects in supercells of them.

Every defect is a function Atoms → Atoms; the input is left alone, the choice of the place comes from the generator.
Places are found from the bonds of the atoms themselves, so strained and rotated crystals are as good as ideal ones.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import numpy as np
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.data import atomic_numbers, covalent_radii
from ase.geometry import get_distances
from numpy.typing import NDArray

from triforces_deploy.errors import UserError
from triforces_deploy.lammps_case import write_case as write_case  # the other half of `tfdeploy defect`

Site = Literal["tetrahedral", "hexagonal", "split110"]
SITES: tuple[Site, ...] = ("tetrahedral", "hexagonal", "split110")
"""Where an extra atom can sit in a diamond or zincblende crystal."""

CLOSEST = 0.7
"""Smallest allowed distance of a new atom, in sums of covalent radii."""


@dataclasses.dataclass(frozen=True)
class Host:
    """A cubic crystal of four-fold coordinated atoms."""

    elements: tuple[str, ...]
    a: float
    """Å. Edge of the cubic cell of 8 atoms."""
    random: bool = False
    """Elements in equal shares at random instead of one on each sublattice."""


HOSTS = {
    "Si": Host(("Si",), 5.431),
    "Ge": Host(("Ge",), 5.658),
    "SiC": Host(("Si", "C"), 4.360),
    "SiGe": Host(("Si", "Ge"), 5.540),
    "SiGe-random": Host(("Si", "Ge"), 5.540, random=True),
}
"""Name → crystal, with the measured lattice constants; SiC is the cubic polytype 3C."""


class Near(NamedTuple):
    """Restricts a defect to the neighbourhood of a point, itself left out."""

    point: NDArray[np.float64]
    """(3,) Å."""
    radius: float
    """Å."""


Maker = Callable[[Atoms, np.random.Generator, Near | None], Atoms]
"""One of the functions below, with its element and site filled in by ``functools.partial``."""


def supercell_of(host: str, n_atoms: int, rng: np.random.Generator | None = None) -> Atoms:
    """The perfect crystal in an orthogonal cell, as near as can be to a size and to a cube.

    Args:
        host: a name in ``HOSTS``.
        n_atoms: the wanted number of atoms.
        rng: places the elements of a random alloy.

    Raises:
        UserError: an unknown host, fewer than 8 atoms or more than a hundred million.
    """
    if host not in HOSTS:
        raise UserError(f"host '{host}' is unknown; choose one of {', '.join(HOSTS)}")
    if not 8 <= n_atoms <= 100_000_000:
        raise UserError(f"a supercell of {n_atoms} atoms was asked for; expected 8 to 100000000")
    crystal = HOSTS[host]
    two = len(crystal.elements) == 2 and not crystal.random
    name, structure = ("".join(crystal.elements), "zincblende") if two else (crystal.elements[0], "diamond")
    prototype = bulk(name, structure, crystal.a)
    transformation, repeats = _best_shape(n_atoms)
    atoms: Atoms = make_supercell(prototype, transformation)
    upright, _ = atoms.cell.standard_form()
    atoms.set_cell(upright, scale_atoms=True)
    atoms = atoms.repeat(repeats)
    atoms.wrap(eps=1e-9)
    if crystal.random:
        species = np.resize(np.array(crystal.elements), len(atoms))
        atoms.set_chemical_symbols((rng or np.random.default_rng(0)).permutation(species).tolist())
    atoms.info = {"host": host, "defects": "none"}
    return atoms


def _best_shape(n_atoms: int) -> tuple[NDArray[np.int64], tuple[int, int, int]]:
    """A cell of the crystal, as a matrix on the primitive one, and how often to repeat it.

    Candidates are the cube (8 atoms) and the square prism whose base is turned by 45° (4 atoms).
    """
    cube = np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]])
    prism = np.array([[0, 0, 1], [1, -1, 0], [1, 1, -1]])
    best: tuple[float, NDArray[np.int64], tuple[int, int, int]] = (np.inf, cube, (1, 1, 1))
    for matrix, size, edges in ((cube, 8, (1.0, 1.0, 1.0)), (prism, 4, (0.5**0.5, 0.5**0.5, 1.0))):
        volume_edge = (n_atoms / 8) ** (1 / 3)
        ranges = [range(max(1, int(volume_edge / e) - 1), int(volume_edge / e) + 3) for e in edges]
        for n in itertools.product(*ranges):
            lengths = [k * e for k, e in zip(n, edges, strict=True)]
            cost = abs(np.log(size * np.prod(n) / n_atoms)) + np.log(max(lengths) / min(lengths))
            if cost < best[0] - 1e-12:
                best = (float(cost), matrix, (n[0], n[1], n[2]))
    return best[1], best[2]


def vacancy(atoms: Atoms, rng: np.random.Generator, near: Near | None = None) -> Atoms:
    """Take one atom away."""
    if len(atoms) < 2:
        raise UserError("a vacancy needs a structure of at least 2 atoms")
    k = _pick(atoms, np.arange(len(atoms)), rng, near, "a vacancy")
    centre, symbol = atoms.positions[k].copy(), atoms.symbols[k]
    out: Atoms = atoms.copy()
    del out[k]
    return _noted(out, f"V_{symbol}", centre)


def substitution(atoms: Atoms, rng: np.random.Generator, near: Near | None = None, *, element: str) -> Atoms:
    """Turn one atom into another element."""
    number = _number(element)
    k = _pick(atoms, np.flatnonzero(atoms.numbers != number), rng, near, f"a substitution by {element}")
    out: Atoms = atoms.copy()
    out.numbers[k] = number
    return _noted(out, f"{element}_{atoms.symbols[k]}", atoms.positions[k].copy())


def antisite(atoms: Atoms, rng: np.random.Generator, near: Near | None = None) -> Atoms:
    """Put an element of a compound on the place of the other."""
    own = HOSTS[atoms.info["host"]].elements if atoms.info.get("host") in HOSTS else ()
    if len(own) != 2:
        raise UserError(f"an antisite needs a host of two elements; this one is {atoms.info.get('host')}; use a substitution")
    first, second = _number(own[0]), _number(own[1])
    k = _pick(atoms, np.flatnonzero(np.isin(atoms.numbers, (first, second))), rng, near, "an antisite")
    out: Atoms = atoms.copy()
    out.numbers[k] = first if atoms.numbers[k] == second else second
    return _noted(out, f"{out.symbols[k]}_{atoms.symbols[k]}", atoms.positions[k].copy())


def interstitial(
    atoms: Atoms, rng: np.random.Generator, near: Near | None = None, *, element: str, site: Site = "tetrahedral"
) -> Atoms:
    """Add one atom.

    'tetrahedral' sits one bond length behind an atom, 'hexagonal' in the middle of a ring of six, and 'split110' shares
    the place of an atom with it, the two side by side along ⟨110⟩.

    Raises:
        UserError: an unknown element or site, or no place with four bonded neighbours and enough room.
    """
    number = _number(element)
    if site not in SITES:
        raise UserError(f"interstitial site '{site}' is unknown; choose one of {', '.join(SITES)}")
    for _ in range(100):
        k = _pick(atoms, np.arange(len(atoms)), rng, near, "an interstitial")
        bonds = _bonds(atoms, k)
        if bonds is None:
            continue
        out = _insert(atoms, k, number, rng.permutation(bonds), site)
        if _has_room(out, len(out) - 1) and (site != "split110" or _has_room(out, k)):
            return _noted(out, f"{element}_i_{site}", out.positions[-1].copy())
    raise UserError(f"found no room for a {site} interstitial {element}; use a larger cell, another site or fewer defects")


def pair(atoms: Atoms, first: Maker, second: Maker, rng: np.random.Generator, within: float = 5.0) -> Atoms:
    """Two defects, the second no farther from the first than ``within`` Å."""
    one = first(atoms, rng, None)
    return second(one, rng, Near(one.info["defect_centre"], within))


def defective(
    host: str,
    n_atoms: int,
    *,
    vacancies: int = 0,
    interstitials: Mapping[str, int] | None = None,
    substitutions: Mapping[str, int] | None = None,
    antisites: int = 0,
    seed: int = 0,
) -> Atoms:
    """A supercell with so many defects of each kind at random places; counts are per element where one is needed."""
    counts = [vacancies, antisites, *(interstitials or {}).values(), *(substitutions or {}).values()]
    if min(counts) < 0:
        raise UserError(f"a number of defects is negative ({min(counts)}); expected 0 or more")
    rng = np.random.default_rng(seed)
    atoms = supercell_of(host, n_atoms, rng)
    if sum(counts) > len(atoms) // 4:
        raise UserError(f"{sum(counts)} defects in {len(atoms)} atoms are no point defects; use at most {len(atoms) // 4}")
    for element, count in (substitutions or {}).items():
        for _ in range(count):
            atoms = substitution(atoms, rng, element=element)
    for _ in range(antisites):
        atoms = antisite(atoms, rng)
    for element, count in (interstitials or {}).items():
        for _ in range(count):
            atoms = interstitial(atoms, rng, element=element)
    for _ in range(vacancies):
        atoms = vacancy(atoms, rng)
    atoms.info["seed"] = seed
    return atoms


def _number(element: str) -> int:
    if atomic_numbers.get(element, 0) == 0:
        raise UserError(f"'{element}' is no chemical symbol; expected one such as Si")
    return int(atomic_numbers[element])


def _pick(atoms: Atoms, candidates: NDArray[np.int64], rng: np.random.Generator, near: Near | None, what: str) -> int:
    """One of the candidate atoms at random, close to a point but not on it where one is given."""
    if near is not None and len(candidates):
        _, distance = get_distances(near.point[None], atoms.positions[candidates], cell=atoms.cell, pbc=atoms.pbc)
        candidates = candidates[(distance[0] < near.radius) & (distance[0] > 0.5)]
    if len(candidates) == 0:
        where = "" if near is None else f" within {near.radius:g} Å of the first defect"
        raise UserError(f"no atom is left for {what}{where}; use a larger cell or fewer defects")
    return int(rng.choice(candidates))


def _bonds(atoms: Atoms, k: int) -> NDArray[np.float64] | None:
    """(4, 3) Å, from atom k to its bonded neighbours; None unless it has four and a gap before the fifth."""
    vectors, distance = get_distances(atoms.positions[k][None], atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    order = np.argsort(distance[0])[1:6]
    if (
        len(order) < 5
        or distance[0, order[3]] > 1.25 * distance[0, order[0]]
        or distance[0, order[4]] < 1.3 * distance[0, order[0]]
    ):
        return None
    found: NDArray[np.float64] = vectors[0, order[:4]]
    return found


def _insert(atoms: Atoms, k: int, number: int, bonds: NDArray[np.float64], site: Site) -> Atoms:
    """Append an atom beside atom k, whose bonds come in any order; see :func:`interstitial`."""
    out: Atoms = atoms.copy()
    place = atoms.positions[k] - bonds[0]
    if site == "hexagonal":  # half-way to the next tetrahedral place
        place = place - 0.5 * bonds[1]
    if site == "split110":  # both step back from the two bonds that they approach
        middle = atoms.positions[k] - 0.24 * (bonds[0] + bonds[1])
        side = 0.3 * (bonds[0] - bonds[1])
        out.positions[k], place = middle + side, middle - side
    out.extend(Atoms(numbers=[number], positions=[place]))
    return out


def _has_room(atoms: Atoms, k: int) -> bool:
    _, distance = get_distances(atoms.positions[k][None], atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    reach = covalent_radii[atoms.numbers] + covalent_radii[atoms.numbers[k]]
    return bool((np.delete(distance[0] / reach, k) >= CLOSEST).all())


def _noted(atoms: Atoms, label: str, centre: NDArray[np.float64]) -> Atoms:
    before = atoms.info.get("defects", "none")
    atoms.info["defects"] = label if before == "none" else f"{before}+{label}"
    atoms.info["defect_centre"] = centre
    return atoms
