"""The noun that everything passes: one structure, or a batch of them, as a graph of edge vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

N_NUMBERS = 119
"""Rows of every table indexed by atomic number; row 0 is reserved for masked atoms and is never a real element."""


class Graph(NamedTuple):
    """N atoms and E directed edges of G structures.

    Positions are not stored: ``edge_vector`` is the only differentiable leaf, shared by every stream, so that one
    derivative gives forces, virial and LAMMPS' pair forces. Every pair closer than the cutoff stands twice, once with
    each atom as the centre, periodic images (also of the atom itself) included.
    """

    numbers: Tensor
    """(N,) int64. Atomic numbers."""

    edge_index: Tensor
    """(2, E) int64. Row 0 is the neighbour j, row 1 the centre i."""

    edge_vector: Tensor
    """(E, 3) float64, Å. x_j − x_i with the image shift applied; LAMMPS' ``rij``."""

    batch: Tensor
    """(N,) int64. The structure that each atom belongs to, 0 … G−1."""

    owned: Tensor
    """(N,) bool. True where this process counts the atom's energy; False for ghosts of atoms that other MPI ranks own."""

    composition: Tensor
    """(G, 119) float64. How many atoms of each atomic number the *whole* structure has, those of other ranks included."""

    cell: Tensor
    """(G, 3, 3) float64, Å. Rows are lattice vectors; zeros where there is no volume (molecules, slabs)."""


def count_elements(numbers: Tensor, batch: Tensor, n_structures: int) -> Tensor:
    """Count atoms by structure and atomic number.

    Args:
        numbers: (N,) int64.
        batch: (N,) int64.
        n_structures: G.

    Returns:
        (G, 119) float64.
    """
    flat = torch.bincount(batch * N_NUMBERS + numbers, minlength=n_structures * N_NUMBERS)
    return flat.reshape(n_structures, N_NUMBERS).to(torch.float64)


def collate(graphs: Sequence[Graph]) -> Graph:
    """Put graphs side by side as one batch; atoms and structures are renumbered, nothing else changes."""
    n_atoms = [g.numbers.shape[0] for g in graphs]
    n_structures = [g.composition.shape[0] for g in graphs]
    atom_offset = [sum(n_atoms[:k]) for k in range(len(graphs))]
    structure_offset = [sum(n_structures[:k]) for k in range(len(graphs))]
    return Graph(
        numbers=torch.cat([g.numbers for g in graphs]),
        edge_index=torch.cat([g.edge_index + o for g, o in zip(graphs, atom_offset, strict=True)], dim=1),
        edge_vector=torch.cat([g.edge_vector for g in graphs]),
        batch=torch.cat([g.batch + o for g, o in zip(graphs, structure_offset, strict=True)]),
        owned=torch.cat([g.owned for g in graphs]),
        composition=torch.cat([g.composition for g in graphs]),
        cell=torch.cat([g.cell for g in graphs]),
    )
