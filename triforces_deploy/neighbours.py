"""Structures to graphs. The neighbour list is vesin's; there is no other."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from vesin import NeighborList

from triforces_deploy.errors import UserError
from triforces_deploy.graph import Graph, count_elements

OVERLAP = 0.1
"""Å. Atoms closer than this are a mistake in the input, not physics."""


def graph_from_atoms(atoms: Atoms, cutoff: float) -> Graph:
    """The graph of one structure; edges sorted by centre.

    Args:
        atoms: any periodicity, any cell, smaller than the cutoff too.
        cutoff: Å.

    Raises:
        UserError: positions or cell that are not finite, a periodic direction without a cell vector, overlapping atoms.
    """
    check_geometry(atoms)
    i, j, vector = _pairs(atoms, cutoff)
    check_overlap(i, j, vector)
    order = np.argsort(i, kind="stable")
    numbers = torch.from_numpy(atoms.numbers.astype(np.int64))
    batch = torch.zeros(len(atoms), dtype=torch.int64)
    return Graph(
        numbers=numbers,
        edge_index=torch.from_numpy(np.stack([j[order], i[order]]).astype(np.int64)),
        edge_vector=torch.from_numpy(np.ascontiguousarray(vector[order])),
        batch=batch,
        owned=torch.ones(len(atoms), dtype=torch.bool),
        composition=count_elements(numbers, batch, 1),
        cell=torch.from_numpy(_volume_cell(atoms))[None],
    )


def check_geometry(atoms: Atoms) -> None:
    """Refuse what no neighbour list can answer; UserError."""
    if not np.isfinite(atoms.positions).all() or not np.isfinite(atoms.cell.array).all():
        raise UserError("positions or cell hold NaN or infinity; expected finite numbers in Å")
    for axis, periodic in enumerate(atoms.pbc):
        if periodic and np.linalg.norm(atoms.cell.array[axis]) < 1e-6:
            raise UserError(f"periodic along axis {axis} but cell vector {axis} is zero; give a cell or set pbc to False there")
    periodic_cell = atoms.cell.array[atoms.pbc]
    if len(periodic_cell) and np.linalg.matrix_rank(periodic_cell, tol=1e-6) < len(periodic_cell):
        raise UserError("the periodic cell vectors are linearly dependent; expected a cell with a volume")


def check_overlap(i: NDArray[np.int64], j: NDArray[np.int64], vector: NDArray[np.float64], nearest: float = OVERLAP) -> None:
    """Refuse atoms closer than ``nearest`` Å; UserError names the pair."""
    if len(vector) == 0:
        return
    distance2 = np.einsum("ek,ek->e", vector, vector)
    worst = int(distance2.argmin())
    if distance2[worst] < nearest**2:
        raise UserError(f"atoms {i[worst]} and {j[worst]} are {distance2[worst] ** 0.5:.3g} Å apart; remove one of them")


def _pairs(atoms: Atoms, cutoff: float) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Directed pairs closer than the cutoff: centre i (E,), neighbour j (E,), x_j − x_i (E, 3)."""
    i, j, shift = image_pairs(atoms, cutoff)
    # Formed from positions so that the vectors carry no rounding of vesin's own wrapping.
    return i, j, atoms.positions[j] - atoms.positions[i] + shift @ _complete_cell(atoms)


def image_pairs(atoms: Atoms, cutoff: float) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Directed pairs closer than the cutoff, unchecked: centre i (E,), neighbour j (E,), the cell vectors between them (E, 3).

    x_j − x_i of a pair is positions[j] − positions[i] + shift @ cell; the shifts are whole numbers.
    """
    if len(atoms) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 3))
    i, j, shift = NeighborList(cutoff=cutoff, full_list=True).compute(
        points=atoms.positions, box=_complete_cell(atoms), periodic=atoms.pbc, quantities="ijS"
    )
    return i.astype(np.int64), j.astype(np.int64), shift.astype(np.float64)


def _complete_cell(atoms: Atoms) -> NDArray[np.float64]:
    """The cell with its missing vectors filled in, which vesin needs to be invertible."""
    return cast(NDArray[np.float64], atoms.cell.complete().array)


def _volume_cell(atoms: Atoms) -> NDArray[np.float64]:
    """The cell where it bounds a volume; ASE gives a stress only then."""
    return atoms.cell.array.astype(np.float64) if atoms.cell.rank == 3 else np.zeros((3, 3))


class CachedNeighbours:
    """Graphs of one system that moves: the list is made for cutoff + skin and used until an atom has moved skin/2.

    Args:
        cutoff: Å.
        skin: Å; 0 makes a list at every call.
    """

    def __init__(self, cutoff: float, skin: float) -> None:
        self.cutoff, self.skin = cutoff, skin
        self._atoms: Atoms | None = None

    def graph(self, atoms: Atoms) -> Graph:
        """The graph of ``atoms`` with exactly the edges that :func:`graph_from_atoms` would find."""
        if self.skin == 0:
            return graph_from_atoms(atoms, self.cutoff)
        check_geometry(atoms)
        if not self._still_valid(atoms):
            self._rebuild(atoms)
        vector = atoms.positions[self._j] - atoms.positions[self._i] + self._shift
        near = np.einsum("ek,ek->e", vector, vector) < self.cutoff**2
        edges = np.stack([self._j[near], self._i[near]])
        check_overlap(edges[1], edges[0], vector[near])
        return self._template._replace(
            edge_index=torch.from_numpy(edges), edge_vector=torch.from_numpy(np.ascontiguousarray(vector[near]))
        )

    def _still_valid(self, atoms: Atoms) -> bool:
        old = self._atoms
        if old is None or len(old) != len(atoms) or (old.numbers != atoms.numbers).any() or (old.pbc != atoms.pbc).any():
            return False
        if not np.array_equal(old.cell.array, atoms.cell.array):
            return False
        moved = atoms.positions - old.positions
        return bool((np.einsum("nk,nk->n", moved, moved) < (0.5 * self.skin) ** 2).all())

    def _rebuild(self, atoms: Atoms) -> None:
        self._atoms = atoms.copy()
        graph = graph_from_atoms(atoms, self.cutoff + self.skin)
        self._j, self._i = graph.edge_index.numpy()
        self._shift = graph.edge_vector.numpy() - (atoms.positions[self._j] - atoms.positions[self._i])
        self._template = graph
