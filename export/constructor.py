"""The neighbour list as a function of tensors, to be frozen into a graph: cutoff and number of images are constants of it.

Everything is written with operators that an inference runtime has: no solver, no scatter, no loop. Memory goes with the
number of pairs of atoms times the images of which any is near, about 100 bytes each; for cells of thousands of atoms make
the graph outside and use the plain form.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from triforces_deploy.neighbours import OVERLAP
from triforces_deploy.onnx_positions import MARGIN


class Constructed(NamedTuple):
    """A graph of N atoms and E edges, sorted by centre, and the tables of payloads/onnx.py."""

    edge_index: Tensor
    """(2, E) int64; row 0 is the neighbour, row 1 the centre."""
    edge_vector: Tensor
    """(E, 3) float64, Å."""
    edges_of_centre: Tensor
    """(N, C) int64."""
    edges_of_neighbour: Tensor
    """(N, B) int64."""
    valid: Tensor
    """() bool. False where the cell needs more images than there are, atoms overlap, or a position is not finite."""


def construct(positions: Tensor, cell: Tensor, pbc: Tensor, cutoff: float, images: int) -> Constructed:
    """Every pair closer than the cutoff, once with each atom as the centre, periodic images included.

    Args:
        positions: (N, 3) float64, Å; N at least 1. Need not lie inside the cell.
        cell: (3, 3) float64, Å; rows are lattice vectors, read only where ``pbc``.
        pbc: (3,) bool.
        cutoff: Å.
        images: how many periods each way are looked at, beyond the nearest image of each pair.
    """
    lattice = cell * pbc.to(torch.float64)[:, None]
    dual = _dual(lattice, pbc)
    # An image s beyond the nearest one can be near only where |s| ≤ cutoff·|dual| + ½.
    reach = cutoff * dual.square().sum(1).sqrt() + (0.5 + MARGIN)
    shifts = _shifts(reach, images)
    fractional = (positions[:, None, :] * dual).sum(2)
    nearest = -torch.round(fractional[None] - fractional[:, None])  # (N, N, 3), centre first
    apart = positions[None] - positions[:, None] + _shifted(nearest, lattice)
    distance2 = (apart[:, :, None, :] + _shifted(shifts, lattice)).square().sum(3)  # (N, N, S)
    itself = torch.eye(positions.shape[0]).to(torch.bool)[:, :, None] & (shifts == 0).all(1)
    near = (distance2 < cutoff**2) & ~itself
    centre, neighbour, image = near.nonzero().unbind(1)
    shift = nearest[centre, neighbour] + shifts.index_select(0, image)
    vector = positions.index_select(0, neighbour) - positions.index_select(0, centre) + _shifted(shift, lattice)
    overlap = (near & (distance2 < OVERLAP**2)).any()
    # Not <=: a cell without volume makes NaN of the reach.
    valid = (reach < images + 1).all() & (positions.abs() < float("inf")).all() & ~overlap
    tables = _tables(neighbour, near.sum((1, 2)), near.sum((0, 2)))
    return Constructed(torch.stack([neighbour, centre]), vector, *tables, valid)


def _dual(lattice: Tensor, pbc: Tensor) -> Tensor:
    """Rows d_k with d_k·a_l = δ_kl inside the space of the periodic lattice vectors; zero for the others."""
    gram = (lattice[:, None] * lattice[None]).sum(2) + torch.eye(3, dtype=torch.float64) * (~pbc).to(torch.float64)
    (a, b, c), (_, d, e), (_, _, f) = (row.unbind(0) for row in gram.unbind(0))
    adjugate = [d * f - e * e, c * e - b * f, b * e - c * d, a * f - c * c, b * c - a * e, a * d - b * b]
    determinant = a * adjugate[0] + b * adjugate[1] + c * adjugate[2]
    inverse = torch.stack([adjugate[k] for k in (0, 1, 2, 1, 3, 4, 2, 4, 5)]).view(3, 3) / determinant
    return (inverse[:, :, None] * lattice[None]).sum(1)


def _shifts(reach: Tensor, images: int) -> Tensor:
    """(S, 3) float64. Of all shifts up to ``images``, those that can matter; large cells have one."""
    every = torch.tensor(list(itertools.product(range(-images, images + 1), repeat=3)), dtype=torch.float64)
    wanted = (every.abs() <= reach).all(1) | (every == 0).all(1)  # one at least, also where the reach is NaN
    return every.index_select(0, wanted.nonzero().squeeze(1))


def _shifted(shift: Tensor, lattice: Tensor) -> Tensor:
    """(…, 3) numbers of lattice vectors → (…, 3) Å. ONNX Runtime sums no axis of a tensor without rows, so it adds terms."""
    return shift[..., :1] * lattice[0] + shift[..., 1:2] * lattice[1] + shift[..., 2:] * lattice[2]


def _tables(neighbour: Tensor, of_centre: Tensor, of_neighbour: Tensor) -> tuple[Tensor, Tensor]:
    """Tables of edges sorted by centre, from the neighbours (E,) and how many edges each atom has as centre, as neighbour."""
    number = torch.ones_like(neighbour).cumsum(0) - 1  # 0 … E−1
    total = of_centre.sum()
    order = torch.sort(neighbour * total + number).indices  # unique keys: no question of stability
    order = torch.cat([order, total[None]])
    return _table(of_centre, total), order[_table(of_neighbour, total)]


def _table(counts: Tensor, total: Tensor) -> Tensor:
    """(N, M): the next ``counts`` numbers for each row, filled up with ``total``."""
    width = counts.max().clamp(min=1).item()  # not int(): its value is open while the graph is recorded
    torch._check(width >= 1)
    slots = torch.arange(width)
    place = (counts.cumsum(0) - counts)[:, None] + slots
    return torch.where(slots < counts[:, None], place, total)
