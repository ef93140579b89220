"""Who sits around a point of a periodic cell of any shape and size, from one search tree."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from triforces_deploy.errors import UserError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

REACH = 12.0
"""Å. How far a defect looks unless it says otherwise."""


class Surroundings:
    """The atoms of a cell and their periodic images within ``reach`` of it."""

    def __init__(self, atoms: Atoms, reach: float = REACH) -> None:
        """Build the tree: O(N log N) time, about 100 bytes per atom.

        Args:
            atoms: three cell vectors; images along the periodic ones.
            reach: Å. Largest radius of :meth:`near`.

        Raises:
            UserError: positions that are not finite, or a cell without volume.
        """
        check_cell(atoms)
        self.atoms = atoms
        self.reach = reach
        self._cell = atoms.cell.array
        positions, self._owner = with_images(atoms, reach)
        self._tree = cKDTree(positions, balanced_tree=False, compact_nodes=False)

    def near(self, point: Floats, radius: float) -> tuple[Ints, Floats]:
        """Atoms within a radius of a point, the nearest first; ties in the order of the atoms.

        Args:
            point: (3,) Å.
            radius: Å, at most ``reach``.

        Returns:
            Indices (M,), and vectors from the point (M, 3) in Å. Of a small cell the same atom comes several times.
        """
        point = point - np.floor(np.linalg.solve(self._cell.T, point)) @ self._cell
        found = np.array(self._tree.query_ball_point(point, radius), dtype=np.int64)
        owner, vectors = self._owner[found], self._tree.data[found] - point
        order = np.lexsort((owner, np.round((vectors**2).sum(axis=1), 9)))
        return owner[order], vectors[order]

    def around(self, k: int, radius: float) -> tuple[Ints, Floats]:
        """The same around an atom, itself left out."""
        index, vectors = self.near(self.atoms.positions[k], radius)
        other = (index != k) | ((vectors**2).sum(axis=1) > 1e-6)
        return index[other], vectors[other]

    def count(self, radius: float) -> Ints:
        """How many neighbours each atom has within a radius, (N,)."""
        found = self._tree.query_ball_point(self._tree.data[: len(self.atoms)], radius, return_length=True)
        return np.asarray(found, dtype=np.int64) - 1

    def closest(self, radius: float) -> tuple[Ints, Ints, Floats]:
        """All pairs of atoms closer than a radius: i (P,), j (P,), distance (P,) in Å; pairs over a face may come twice."""
        pairs = self._tree.query_pairs(radius, output_type="ndarray")
        distance = np.linalg.norm(self._tree.data[pairs[:, 0]] - self._tree.data[pairs[:, 1]], axis=1)
        return self._owner[pairs[:, 0]], self._owner[pairs[:, 1]], distance


def check_cell(atoms: Atoms) -> None:
    """Refuse what has no supercell; UserError."""
    if not np.isfinite(atoms.positions).all() or not np.isfinite(atoms.cell.array).all():
        raise UserError("positions or cell hold NaN or infinity; expected finite numbers in Å")
    if atoms.cell.rank < 3 or not atoms.pbc.all():
        raise UserError("the structure is not periodic in three directions; give it a cell and pbc")


def with_images(atoms: Atoms, reach: float) -> tuple[Floats, Ints]:
    """Positions (M, 3) in Å of the atoms, as they are, and of all images within ``reach`` of the cell; whose they are (M,)."""
    cell = atoms.cell.array
    fractional = np.linalg.solve(cell.T, atoms.positions.T).T
    shift = np.floor(fractional)
    owner = np.arange(len(atoms))
    inside = fractional - shift
    image = np.zeros_like(inside)
    for axis, height in enumerate(heights(cell)):
        margin = reach / height
        new_owner, new_inside, new_image = [owner], [inside], [image]
        for n in range(1, int(np.ceil(margin)) + 1):
            for sign in (1, -1):
                place = inside[:, axis] + sign * n
                close = place < 1 + margin if sign == 1 else place > -margin
                new_owner.append(owner[close])
                moved = inside[close]
                moved[:, axis] = place[close]
                new_inside.append(moved)
                step = image[close]
                step[:, axis] += sign * n
                new_image.append(step)
        owner, inside, image = np.concatenate(new_owner), np.concatenate(new_inside), np.concatenate(new_image)
    # From the positions themselves, so that an atom and its images differ by exact lattice vectors.
    return atoms.positions[owner] + (image - shift[owner]) @ cell, owner


def heights(cell: Floats) -> Floats:
    """(3,) Å, distances between opposite faces."""
    across = np.cross(cell[[1, 2, 0]], cell[[2, 0, 1]])
    tall: Floats = abs(np.linalg.det(cell)) / np.linalg.norm(across, axis=1)
    return tall


def crowding(atoms: Atoms, radius_sums: float) -> tuple[float, int, int, float]:
    """The pair of atoms that is closest in units of its covalent radii, among pairs below ``radius_sums`` of the largest.

    Returns:
        Ratio (inf without such a pair), the two atoms, their distance in Å.
    """
    radii = covalent_radii[atoms.numbers]
    reach = radius_sums * 2 * float(radii.max())
    i, j, distance = Surroundings(atoms, reach).closest(reach)
    ratio = distance / (radii[i] + radii[j])
    if len(ratio) == 0:
        return float("inf"), -1, -1, float("inf")
    k = int(ratio.argmin())
    return float(ratio[k]), int(i[k]), int(j[k]), float(distance[k])
