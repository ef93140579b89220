"""What LAMMPS' ML-IAP coupling lists, as tensors where LAMMPS has them, and the edges of a graph made of it."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from triforces_deploy.lammps_plugin.mliap_rows import Rows


class Data(Protocol):
    """What is read and written of LAMMPS' object; arrays are numpy's or cupy's and live during one call.

    With N atoms and ghosts, L listed centres, M ≥ L listed atoms (ghosts too with ghostneigh 1) and P directed pairs.
    Where a size is zero the arrays of that length must not be touched.
    """

    ntotal: int
    nlocal: int
    nlistatoms: int
    natomneigh: int
    npairs: int
    elems: Any
    """(N,) int32, index into the elements of the potential; −1 for types of another pair style."""
    iatoms: Any
    """(M,) int32."""
    pair_i: Any
    """(P,) int32, centres."""
    pair_j: Any
    """(P,) int32, neighbours."""
    rij: Any
    """(P, 3) float64, x_j − x_i, Å."""
    energy: float
    """eV; can only be written."""
    eatoms: Any
    """(L,) float64, eV. Plain builds: can only be assigned. Kokkos builds: can only be copied into."""

    def update_pair_forces(self, fij: Any) -> None: ...


class Lists(NamedTuple):
    """What LAMMPS lists, on the device where it does."""

    elements: Tensor
    """(N,) int64."""
    listed: Tensor
    """(L,) int64. Atoms whose energy counts."""
    centre: Tensor
    """(P,) int64."""
    neighbour: Tensor
    """(P,) int64."""
    vector: Tensor
    """(P, 3) float64, Å."""

    @property
    def device(self) -> torch.device:
        return self.elements.device


class Edges(NamedTuple):
    ends: Tensor
    """(2, E) int64, in rows: neighbour and centre."""
    vector: Tensor
    """(E, 3) float64, Å."""
    pairs: Tensor
    """(K,) int64. The pair of LAMMPS behind each of the first K edges."""
    mirrored: Tensor
    """(E − K,) int64. Which of those edges each further edge is the mirror image of."""


def device_of(data: Data, on_gpu: bool) -> torch.device:
    """Where LAMMPS' arrays are."""
    if not on_gpu:
        return torch.device("cpu")
    return torch.as_tensor(data.elems).device if data.ntotal else torch.device("cuda", torch.cuda.current_device())


def read(data: Data, device: torch.device) -> Lists:
    """The lists as tensors on ``device``; what LAMMPS computes there must be complete."""
    n, p = data.ntotal, data.npairs

    def integers(array: Any) -> Tensor:
        return torch.as_tensor(array, device=device).to(torch.int64)

    nothing = torch.zeros(0, dtype=torch.int64, device=device)
    return Lists(
        elements=integers(data.elems) if n else nothing,
        # With ghostneigh 1 ghosts are listed behind the atoms; their own ranks evaluate them.
        listed=integers(data.iatoms)[: data.nlistatoms] if data.nlistatoms else nothing,
        centre=integers(data.pair_i) if p else nothing,
        neighbour=integers(data.pair_j) if p else nothing,
        vector=torch.as_tensor(data.rij, device=device) if p else torch.zeros(0, 3, dtype=torch.float64, device=device),
    )


def edges_of(lists: Lists, rows: Rows, mirror: bool) -> Edges:
    """Edges of the owned centres; and the mirror images of those that end at a ghost, for models that read both directions."""
    listed = torch.zeros(len(lists.elements), dtype=torch.bool, device=lists.device)
    listed[lists.listed] = True
    pairs = torch.nonzero(listed[lists.centre])[:, 0]
    centre, neighbour = rows.row[lists.centre[pairs]], rows.row[lists.neighbour[pairs]]
    vector = lists.vector[pairs]
    mirrored = torch.nonzero(~rows.owned[neighbour])[:, 0] if mirror else pairs[:0]
    index = torch.stack([torch.cat([neighbour, centre[mirrored]]), torch.cat([centre, neighbour[mirrored]])])
    return Edges(index, torch.cat([vector, -vector[mirrored]]), pairs, mirrored)


def pair_forces_of(edge_forces: Tensor, edges: Edges, n_pairs: int) -> Tensor:
    """(P, 3) contiguous; a mirror image counts as minus its original."""
    kept = len(edges.pairs)
    folded = edge_forces[:kept].clone()
    folded[edges.mirrored] -= edge_forces[kept:]
    return torch.zeros(n_pairs, 3, dtype=torch.float64, device=folded.device).index_copy(0, edges.pairs, folded)
