"""Perfect crystals by name or from a file, and supercells of them by size or by matrix."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.data import atomic_numbers
from ase.spacegroup import crystal
from numpy.typing import NDArray

from triforces_deploy.defects.surroundings import check_cell
from triforces_deploy.errors import UserError
from triforces_deploy.structure_files import read_structure

LARGEST = 100_000_000
"""Atoms."""


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

ALLOYED = ("fcc", "bcc", "hcp", "diamond", "sc")
"""Structures of one site, on which several elements sit at random."""
CENTRED = (60.0, np.degrees(np.arccos(-1 / 3)))
"""Angles of the primitive cells of fcc and bcc lattices."""
COMPOUNDS = ("zincblende", "rocksalt", "cesiumchloride", "fluorite", "wurtzite")


@dataclasses.dataclass(frozen=True)
class Crystal:
    """What a supercell is made of."""

    name: str
    cell: Atoms
    """What ``--matrix`` multiplies: the conventional cell of a prototype, the cell of a file."""
    primitive: Atoms
    """The smallest cell known; a supercell by size is searched among its multiples."""
    shares: Mapping[str, float] | None = None
    """Element → fraction of all atoms, placed at random; None leaves the elements where they are."""


def supercell_of(host: str, n_atoms: int, rng: np.random.Generator | None = None, matrix: Sequence[int] | None = None) -> Atoms:
    """The perfect crystal, as near as can be to a size and to a cube, or by a matrix.

    Its cell is lower triangular, as LAMMPS wants it, and orthogonal where the lattice allows it.

    Args:
        host: a name in ``HOSTS``, a file, or ``FORMULA:STRUCTURE:a:c`` as :func:`crystal_of` reads it.
        n_atoms: the wanted number of atoms.
        rng: places the elements of a random alloy.
        matrix: three repeats of the conventional cell, or nine integers that mix its vectors, row by row; the size then
            follows from it.

    Raises:
        UserError: an unknown host, a file that is no crystal, a size that cannot be.
    """
    found = crystal_of(host)
    if matrix is not None:
        atoms = _multiple(found.cell, _square(matrix))
    else:
        if not 8 <= n_atoms <= LARGEST:
            raise UserError(f"a supercell of {n_atoms} atoms was asked for; expected 8 to {LARGEST}")
        atoms = _multiple(found.primitive, best_shape(found.primitive, n_atoms))
    if found.shares is not None:
        atoms.numbers = _alloyed(found.shares, len(atoms), rng or np.random.default_rng(0))
    atoms.info = {"host": host, "defects": "none"}
    return atoms


def crystal_of(host: str) -> Crystal:
    """Look a host up, read it from a file, or build it.

    ``FORMULA:STRUCTURE:a:c`` leaves out from the right what is known: 'Cu', 'Fe:bcc', 'GaAs:zincblende:5.653',
    'SrTiO3:perovskite:3.905', 'GaN:wurtzite:3.19:5.19', 'Si0.7Ge0.3:diamond:5.48' (elements at random).

    Raises:
        UserError: neither a name, a file nor a prototype, or one whose lattice constant must be given.
    """
    if host in HOSTS:
        known = HOSTS[host]
        if known.random or len(known.elements) == 1:
            shares = dict.fromkeys(known.elements, 1 / len(known.elements)) if known.random else None
            return Crystal(host, *_prototype(known.elements[:1], "diamond", known.a, None), shares)
        return Crystal(host, *_prototype(known.elements, "zincblende", known.a, None))
    if Path(host).is_file():
        return _from_file(Path(host))
    if re.search(r"/|\.[a-zA-Z]\w*$", host):
        raise UserError(f"host '{host}' is no file; expected a structure that ASE reads, or a crystal such as Si or Fe:bcc")
    formula, structure, a, c = (*host.split(":"), "", "", "")[:4]
    shares = _formula(formula, host)
    try:
        return _named(host, shares, structure, *(_length(x, host) for x in (a, c)))
    except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        raise UserError(f"host '{host}': {str(error).splitlines()[0]}") from error


def _named(host: str, shares: dict[str, float], structure: str, a: float | None, c: float | None) -> Crystal:
    elements = tuple(shares)
    if len(elements) == 1 and structure not in COMPOUNDS:
        return Crystal(host, *_prototype(elements, structure or None, a, c))
    if not structure or a is None:
        raise UserError(
            f"host '{host}' is unknown; choose one of {', '.join(HOSTS)}, an element, a file, or FORMULA:STRUCTURE:a, "
            f"such as {''.join(elements) if len(elements) > 1 else 'GaAs'}:zincblende:5.65"
        )
    if structure == "perovskite":
        return Crystal(host, *_perovskite(shares, a, host))
    if structure in ALLOYED:
        total = sum(shares.values())
        return Crystal(host, *_prototype(elements[:1], structure, a, c), {e: n / total for e, n in shares.items()})
    if structure not in COMPOUNDS:
        raise UserError(f"host '{host}': expected a structure among {', '.join((*ALLOYED, *COMPOUNDS, 'perovskite'))}")
    return Crystal(host, *_prototype(elements, structure, a, c))


def _prototype(elements: Sequence[str], structure: str | None, a: float | None, c: float | None) -> tuple[Atoms, Atoms]:
    """Conventional and primitive cell; what is None comes from ASE's reference data."""
    formula = "".join(elements) if structure != "fluorite" else f"{elements[0]}{elements[1]}2"
    primitive: Atoms = bulk(formula, structure, a=a, c=c)
    shape = primitive.cell.cellpar()
    if np.ptp(shape[:3]) < 1e-6 and any(np.allclose(shape[3:], angle) for angle in CENTRED):
        conventional: Atoms = bulk(formula, structure, a=a, cubic=True)
        return conventional, primitive
    return primitive, primitive


def _perovskite(shares: Mapping[str, float], a: float, host: str) -> tuple[Atoms, Atoms]:
    if list(shares.values()) != [1, 1, 3]:
        raise UserError(f"host '{host}': a perovskite is written ABX3, such as SrTiO3:perovskite:3.905")
    cell: Atoms = crystal(
        list(shares), [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)], spacegroup=221, cellpar=[a, a, a, 90, 90, 90]
    )
    return cell, cell


def _formula(text: str, host: str) -> dict[str, float]:
    """Element → amount, of a formula whose amounts may be fractions."""
    parts = re.findall(r"([A-Z][a-z]?)(\d*\.?\d*)", text)
    shares = {symbol: float(amount or 1) for symbol, amount in parts}
    sound = "".join(a + b for a, b in parts) == text and len(shares) == len(parts)
    if not sound or not shares or any(atomic_numbers.get(e, 0) == 0 for e in shares) or min(shares.values()) <= 0:
        raise UserError(
            f"host '{host}' is unknown; choose one of {', '.join(HOSTS)}, a file, or FORMULA:STRUCTURE:a such as Fe:bcc:2.87"
        )
    return shares


def _length(text: str, host: str) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        value = -1.0
    if value is not None and not 1 < value < 100:
        raise UserError(f"host '{host}': '{text}' is no lattice constant; expected Å, between 1 and 100")
    return value


def _from_file(path: Path) -> Crystal:
    atoms = read_structure(path)
    if any(max(sites.values()) < 1 - 1e-6 for sites in atoms.info.get("occupancy", {}).values()):
        raise UserError(f"{path} holds partly occupied sites; expected one atom on each, e.g. an ordered cell of it")
    try:
        check_cell(atoms)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    plain = Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)
    if plain.cell.handedness != 1:
        raise UserError(f"{path}: the cell vectors are left-handed; exchange two of them")
    return Crystal(path.name, plain, plain)


def _square(matrix: Sequence[int]) -> NDArray[np.int64]:
    if len(matrix) not in (3, 9):
        raise UserError(f"a matrix of {len(matrix)} numbers was given; expected 3 repeats or 9 integers, row by row")
    full = np.diag(matrix) if len(matrix) == 3 else np.array(matrix).reshape(3, 3)
    if round(np.linalg.det(full)) < 1 or (len(matrix) == 3 and min(matrix) < 1):
        raise UserError(f"the matrix {','.join(map(str, matrix))} gives no cell; expected a positive determinant")
    return full


def best_shape(primitive: Atoms, n_atoms: int) -> NDArray[np.int64]:
    """The integer matrix whose multiple of a cell comes nearest to a size and to a cube, (3, 3).

    Compared by |log size ratio| + log(longest / shortest edge) + largest |cosine| between edges.
    """
    cell, size = primitive.cell.array, len(primitive)
    edge = (n_atoms / size * abs(np.linalg.det(cell))) ** (1 / 3)
    found: list[NDArray[np.int64]] = []
    for base in _orthogonal(cell):
        counts = edge / np.linalg.norm(base @ cell, axis=1)
        ranges = [range(max(1, int(n) - 1), int(n) + 3) for n in counts]
        found += [np.array(n)[:, None] * base for n in itertools.product(*ranges)]
    if not found:
        scales = edge * np.linspace(0.8, 1.25, 91)
        found = [m for m in (np.rint(s * np.linalg.inv(cell)).astype(np.int64) for s in scales) if np.linalg.det(m) > 0.5]
        found.append(np.eye(3, dtype=np.int64))
    matrices = np.array(found)
    vectors = matrices @ cell
    lengths = np.linalg.norm(vectors, axis=2)
    unit = vectors / lengths[..., None]
    cosine = np.abs(np.einsum("mij,mkj->mik", unit, unit)[:, [0, 0, 1], [1, 2, 2]]).max(axis=1)
    sizes = np.abs(np.linalg.det(matrices)) * size
    cost = np.abs(np.log(sizes / n_atoms)) + np.log(lengths.max(axis=1) / lengths.min(axis=1)) + cosine
    best: NDArray[np.int64] = matrices[int(np.round(cost, 9).argmin())]
    return best


def _orthogonal(cell: NDArray[np.float64], most: int = 8) -> list[NDArray[np.int64]]:
    """Matrices of the orthogonal cells of a lattice of at most ``most`` primitive cells; one for each set of edges."""
    every = np.array(list(itertools.product(range(-2, 3), repeat=3)))
    indices = every[len(every) // 2 + 1 :]  # one of each pair ±v
    vectors = indices @ cell
    lengths = np.linalg.norm(vectors, axis=1)
    square = np.abs(vectors @ vectors.T) < 1e-6 * np.outer(lengths, lengths)
    found: dict[tuple[float, ...], NDArray[np.int64]] = {}
    for i in range(len(indices)):
        for j in np.flatnonzero(square[i, i:]) + i:
            for k in np.flatnonzero(square[i, j:] & square[j, j:]) + j:
                matrix = indices[[i, j, k]]
                times = round(np.linalg.det(matrix))
                if 0 < abs(times) <= most:
                    upright = matrix if times > 0 else matrix[[1, 0, 2]]
                    found.setdefault(tuple(np.round(np.sort(lengths[[i, j, k]]), 6)), upright)
    return [found[key] for key in sorted(found)]


def _multiple(unit: Atoms, matrix: NDArray[np.int64]) -> Atoms:
    """The supercell of an integer matrix, lower triangular and wrapped; its common factors are repeated without a loop."""
    times = np.gcd.reduce(matrix, axis=1)
    if len(unit) * round(np.linalg.det(matrix)) > LARGEST:
        raise UserError(f"the matrix makes a cell of more than {LARGEST} atoms; use a smaller one")
    piece: Atoms = make_supercell(unit, matrix // times[:, None])
    upright, _ = piece.cell.standard_form()
    piece.set_cell(upright, scale_atoms=True)
    piece.wrap(eps=1e-9)
    steps = np.indices(tuple(times)).reshape(3, -1).T @ piece.cell.array
    positions = (steps[:, None] + piece.positions).reshape(-1, 3)
    numbers = np.tile(piece.numbers, len(steps))
    return Atoms(numbers=numbers, positions=positions, cell=piece.cell.array * times[:, None], pbc=True)


def _alloyed(shares: Mapping[str, float], n_atoms: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Atomic numbers (N,) in the nearest possible shares, shuffled."""
    ends = np.rint(np.cumsum(list(shares.values())) * n_atoms).astype(np.int64)
    counts = np.diff(ends, prepend=0)
    return rng.permutation(np.repeat([atomic_numbers[e] for e in shares], counts))
