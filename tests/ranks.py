"""A structure cut over simulated MPI ranks: threads with ghosts and a real exchange between them, evaluated in lock-step."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from torch import Tensor

from triforces_deploy import exchange
from triforces_deploy.derivatives import Derivative, evaluate, forces, virial
from triforces_deploy.graph import Graph
from triforces_deploy.neighbours import graph_from_atoms

EnergiesOf = Callable[[Graph], Tensor]
"""Graph → per-atom energies (N,) float64: a model, or a backbone with a readout."""


def check_split(energies_of: EnergiesOf, atoms: Atoms, cutoff: float, bidirectional: bool, tolerance: float = 1e-12) -> None:
    """Compare a structure cut over three ranks, one of them empty, with the structure in one piece.

    Args:
        energies_of: the model, in float64.
        atoms: periodic, at least two atoms.
        cutoff: Å.
        bidirectional: whether ranks also list, mirrored, the edges whose neighbour they do not own.
        tolerance: largest deviation of an energy, force or virial, relative to the largest of each kind (or to 1).

    Raises:
        AssertionError: the numbers differ; or they do not differ when ghosts are never told what their owners computed.
    """
    found = deviation(energies_of, atoms, cutoff, bidirectional, communicate=True)
    assert found <= tolerance, f"several ranks deviate from one by {found:.3g}, allowed {tolerance:.3g}"
    counter = Counter()
    with exchange.using(counter):
        evaluate(energies_of, graph_from_atoms(atoms, cutoff))
    if counter.forwards:
        assert deviation(energies_of, atoms, cutoff, bidirectional, communicate=False) > 1e-6, "ghosts made no difference"


def deviation(energies_of: EnergiesOf, atoms: Atoms, cutoff: float, bidirectional: bool, communicate: bool) -> float:
    """Largest relative deviation of per-atom energies, total forces and virial of the divided structure."""
    whole = graph_from_atoms(atoms, cutoff)
    reference = evaluate(energies_of, whole)
    n = len(atoms)
    rank_of = (np.argsort(np.argsort(atoms.get_scaled_positions()[:, 0])) * 2 // n).astype(np.int64)
    shares = split(atoms, cutoff, rank_of, 3, bidirectional)
    energies, total, strain = (torch.zeros(shape, dtype=torch.float64) for shape in ((n,), (n, 3), (1, 3, 3)))
    for share, result in zip(shares, evaluate_shares(shares, energies_of, communicate), strict=True):
        n_owned = len(share.atoms)
        own_and_ghost = forces(result.edge_forces, share.graph)
        energies[share.atoms] = result.energies[:n_owned]
        total.index_add_(0, share.atoms, own_and_ghost[:n_owned])
        for rank, owner in enumerate(shares):  # what a host does at the end of a step: ghosts hand their forces in
            theirs = share.ghost_rank == rank
            total.index_add_(0, owner.atoms[share.ghost_row[theirs]], own_and_ghost[n_owned:][theirs])
        strain += virial(result.edge_forces, share.graph)
    expected = (reference.energies, forces(reference.edge_forces, whole), virial(reference.edge_forces, whole))
    pairs = zip((energies, total, strain), expected, strict=True)
    return float(torch.stack([(a - b).abs().max() / b.abs().max().clamp_min(1.0) for a, b in pairs]).max())  # NaN stays NaN


@dataclass
class Share:
    """What one rank holds: its own atoms in the first rows, then a row for each image of a foreign atom."""

    graph: Graph
    atoms: Tensor
    """(n_owned,) index of each own atom in the whole structure."""
    ghost_rank: Tensor
    """(n_ghosts,) who owns the atom."""
    ghost_row: Tensor
    """(n_ghosts,) in which row of theirs."""


def split(atoms: Atoms, cutoff: float, rank_of: NDArray[np.int64], n_ranks: int, bidirectional: bool) -> list[Share]:
    """Cut a structure: own atoms, ghosts, edges whose centre is owned, and the mirrors of those that end at a ghost."""
    whole = graph_from_atoms(atoms, cutoff)
    neighbour, centre = whole.edge_index.numpy()
    vector = whole.edge_vector.numpy()
    row = np.array([np.sum(rank_of[:k] == rank_of[k]) for k in range(len(atoms))], dtype=np.int64)
    shares = []
    for rank in range(n_ranks):
        own = np.flatnonzero(rank_of == rank)
        mine = rank_of[centre] == rank
        foreign = rank_of[neighbour[mine]] != rank
        place = np.round(atoms.positions[centre[mine]] + vector[mine], 4)
        images, which = np.unique(np.column_stack([neighbour[mine], place])[foreign], axis=0, return_inverse=True)
        ghosts = images[:, 0].astype(np.int64)
        ends = row[neighbour[mine]]
        ends[foreign] = len(own) + which.reshape(-1)
        edges, vectors = np.stack([ends, row[centre[mine]]]), vector[mine]
        if bidirectional:
            edges = np.concatenate([edges, edges[::-1, foreign]], axis=1)
            vectors = np.concatenate([vectors, -vectors[foreign]])
        everyone = np.concatenate([own, ghosts])
        graph = whole._replace(
            numbers=whole.numbers[everyone],
            edge_index=torch.from_numpy(edges.copy()),
            edge_vector=torch.from_numpy(vectors.copy()),
            batch=whole.batch[everyone],
            owned=torch.arange(len(everyone)) < len(own),
        )
        shares.append(Share(graph, *map(torch.from_numpy, (own, rank_of[ghosts], row[ghosts]))))
    return shares


def evaluate_shares(shares: list[Share], energies_of: EnergiesOf, communicate: bool) -> list[Derivative]:
    """Evaluate all ranks at once, one thread each, in lock-step at every exchange."""
    handler = _LockStep(shares, communicate)
    results: list[Derivative | None] = [None] * len(shares)
    failures: list[Exception] = []

    def work(rank: int) -> None:
        handler.here.rank = rank
        try:
            results[rank] = evaluate(energies_of, shares[rank].graph)
        except Exception as failure:
            failures.append(failure)
            handler.barrier.abort()  # or the others would wait for ever

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(shares))]
    with exchange.using(handler):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    return [result for result in results if result is not None]


class _LockStep:
    """An exchange between threads: everybody lays out the rows, waits for the others, and takes what is needed."""

    def __init__(self, shares: list[Share], communicate: bool) -> None:
        self.here = threading.local()
        self.barrier = threading.Barrier(len(shares), timeout=60)
        self._shares, self._communicate = shares, communicate
        self._table: list[Tensor] = [torch.empty(0)] * len(shares)

    def forward(self, h: Tensor) -> Tensor:
        mine, fresh = self._lay_out(h)
        n_owned = len(mine.atoms)
        for rank in range(len(self._shares)):
            theirs = mine.ghost_rank == rank
            fresh[n_owned:][theirs] = self._table[rank][mine.ghost_row[theirs]]
        return self._clear(h, fresh)

    def adjoint(self, g: Tensor) -> Tensor:
        mine, fresh = self._lay_out(g)
        fresh[len(mine.atoms) :] = 0.0
        for rank, share in enumerate(self._shares):
            to_me = share.ghost_rank == self.here.rank
            fresh.index_add_(0, share.ghost_row[to_me], self._table[rank][len(share.atoms) :][to_me])
        return self._clear(g, fresh)

    def _lay_out(self, rows: Tensor) -> tuple[Share, Tensor]:
        self._table[self.here.rank] = rows.detach()
        self.barrier.wait()
        return self._shares[self.here.rank], rows.detach().clone()

    def _clear(self, rows: Tensor, fresh: Tensor) -> Tensor:
        self.barrier.wait()
        return fresh if self._communicate else rows.clone()


class Counter:
    """Copies, and counts how often."""

    forwards = adjoints = 0

    def forward(self, h: Tensor) -> Tensor:
        self.forwards += 1
        return h.clone()

    def adjoint(self, g: Tensor) -> Tensor:
        self.adjoints += 1
        return g.clone()
