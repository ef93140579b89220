"""Supercells of crystals, by size or by matrix."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from ase import Atoms
from ase.build import make_supercell
from ase.data import atomic_numbers
from numpy.typing import NDArray

from triforces_deploy.defects.hosts import Crystal, crystal_of
from triforces_deploy.errors import UserError

LARGEST = 100_000_000
"""Atoms."""


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
        atoms = multiple(found.cell, _square(matrix))
    else:
        atoms = multiple(found.primitive, best_shape(found.primitive, check_size(n_atoms)))
    return finished(found, atoms, rng)


def finished(found: Crystal, atoms: Atoms, rng: np.random.Generator | None) -> Atoms:
    """The atoms with the elements of a random alloy dealt out and the host noted."""
    if found.shares is not None:
        atoms.numbers = _alloyed(found.shares, len(atoms), rng or np.random.default_rng(0))
    atoms.info = {"host": found.name, "defects": "none"}
    return atoms


def check_size(n_atoms: int) -> int:
    """The number itself; UserError outside 8 … ``LARGEST``."""
    if not 8 <= n_atoms <= LARGEST:
        raise UserError(f"a supercell of {n_atoms} atoms was asked for; expected 8 to {LARGEST}")
    return n_atoms


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


def multiple(unit: Atoms, matrix: NDArray[np.int64]) -> Atoms:
    """The supercell of an integer matrix, lower triangular and wrapped; its common factors are repeated without a loop."""
    times = np.gcd.reduce(matrix, axis=1)
    if len(unit) * round(np.linalg.det(matrix)) > LARGEST:
        raise UserError(f"a cell of more than {LARGEST} atoms was asked for; use a smaller one")
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
