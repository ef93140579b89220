"""Which structures make up which step, as a function of the step alone, and how they are turned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triforces_deploy.errors import UserError
from triforces_deploy.training.data import Part, Unit, beside
from triforces_deploy.training.structures import Sample


class Order:
    """An endless stream of structures, cut into batches of a size.

    Each pass over the data has a new random order; a batch may straddle two passes. A batch is closed before it exceeds its
    size; a structure that exceeds it alone is a batch alone. Any step can be asked for, in any order, by any process.

    Args:
        sizes: (S,) what each structure counts: 1, its atoms or its edges.
        size: of a batch, in the same unit.
        seed: of the orders.
    """

    def __init__(self, sizes: NDArray[np.int64], size: int, seed: int) -> None:
        self.sizes, self.size, self.seed = sizes, size, seed
        self._starts = [0]  # places in the stream where batches begin
        self._passes = 0
        self._open = 0  # what the last batch, which may go on in the next pass, holds so far
        self._orders: dict[int, NDArray[np.int64]] = {}

    def batch(self, step: int) -> list[int]:
        """Indices of the structures of a step, counted from 0."""
        while len(self._starts) <= step + 1:
            self._cut_next_pass()
        chosen = []
        for place in range(self._starts[step], self._starts[step + 1]):
            number, k = divmod(place, len(self.sizes))
            chosen.append(int(self._order(number)[k]))
        return chosen

    def _cut_next_pass(self) -> None:
        total = np.cumsum(self.sizes[self._order(self._passes)])
        first = self._passes * len(total)
        used = -self._open  # what of this pass lies in closed batches
        while True:
            k = int(np.searchsorted(total, used + self.size, side="right"))  # the first that does not fit
            k = max(k, self._starts[-1] + 1 - first)  # at least one in each
            if k >= len(total):
                break
            self._starts.append(first + k)
            used = int(total[k - 1]) if k else 0
        self._open = int(total[-1]) - used
        self._passes += 1

    def _order(self, number: int) -> NDArray[np.int64]:
        """(S,) order of a pass; the last two are kept."""
        if number not in self._orders:
            for old in sorted(self._orders)[:-1]:
                del self._orders[old]
            self._orders[number] = np.random.default_rng([self.seed, 1, number]).permutation(len(self.sizes))
        return self._orders[number]


class Stream:
    """The training batches: a step's structures, turned at random where that is wanted.

    Args:
        part: what to train on.
        size: of the batch of a step, all processes and pieces together, in ``unit``.
        unit: what the size counts.
        seed: of orders and turns.
        rotate: turn every structure at random.
        old: other structures that are mixed into every batch.
        share: of the batch that is theirs.
    """

    shift: Tensor | None = None
    """(119,) float64, eV. What the energy of an atom of each element in ``old`` is moved by."""

    def __init__(
        self, part: Part, size: int, unit: Unit, seed: int, rotate: bool, old: Part | None = None, share: float = 0.0
    ) -> None:
        self.part = part if old is None else beside(part, old)
        self.seed, self.rotate, self.first_old = seed, rotate, len(part)
        theirs = 0 if old is None else min(max(1, round(share * size)), size - 1)
        self.orders = [(0, Order(part.sizes(unit), size - theirs, seed))]
        if old is not None:
            # Another seed: two data sets of one size would otherwise go through their structures in the same order.
            self.orders.append((len(part), Order(old.sizes(unit), theirs, seed + 1)))

    def chosen(self, step: int) -> list[int]:
        """Indices in ``part`` of the structures of a step, counted from 0."""
        return [first + k for first, order in self.orders for k in order.batch(step)]

    def batches(self, steps: range, rank: int = 0, ranks: int = 1) -> Iterator[Sample]:
        """Every ``ranks``-th structure of the batch of each step; the shares of all ranks make up the batch.

        Raises:
            UserError: a batch with fewer structures than ranks.
        """
        share = slice(rank, None, ranks)
        for step in steps:
            chosen = self.chosen(step)
            if len(chosen) < ranks:
                raise UserError(
                    f"the batch of step {step + 1} has {len(chosen)} structures, which {ranks} processes and pieces cannot "
                    "share; raise trainer.batch_size, or lower trainer.accumulate or trainer.devices"
                )
            sample = self._moved(self.part.batch(chosen[share]), chosen[share])
            if self.rotate:
                turns = random_rotations(len(chosen), np.random.default_rng([self.seed, 2, step]))
                sample = rotated(sample, turns[share])
            yield sample

    def _moved(self, sample: Sample, chosen: list[int]) -> Sample:
        """Old structures with their energies counted from the zero of the new ones."""
        if self.shift is None:
            return sample
        old = torch.tensor(chosen) >= self.first_old
        return sample._replace(energy=sample.energy + torch.where(old, sample.graph.composition @ self.shift, 0.0))


def cut(sizes: NDArray[np.int64], size: int) -> Iterator[list[int]]:
    """All structures in their own order, in batches that do not exceed a size unless one structure does."""
    chosen: list[int] = []
    for k in range(len(sizes)):
        if chosen and sizes[chosen].sum() + sizes[k] > size:
            yield chosen
            chosen = []
        chosen.append(k)
    if chosen:
        yield chosen


def random_rotations(n: int, rng: np.random.Generator) -> Tensor:
    """(n, 3, 3) float64, uniform over all rotations and reflections (Haar measure of O(3)).

    The orthogonal factor of a Gaussian matrix is uniform once the signs of the triangular factor are fixed.
    """
    q, r = np.linalg.qr(rng.normal(size=(n, 3, 3)))
    return torch.from_numpy(q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :])


def rotated(sample: Sample, turns: Tensor) -> Sample:
    """Each structure turned by its own (3, 3) of the (G, 3, 3), x → R x, with its labels; energies stay."""
    graph = sample.graph
    graph = graph._replace(
        edge_vector=_turned(graph.edge_vector, turns, graph.batch[graph.edge_index[1]]),
        cell=graph.cell @ turns.transpose(1, 2),
    )
    stress = turns @ sample.stress @ turns.transpose(1, 2)
    targets = {name: _turned_target(values, turns, sample) for name, values in sample.targets.items()}
    return Sample(graph, sample.energy, _turned(sample.forces, turns, graph.batch), stress, targets=targets)


def _turned_target(values: Tensor, turns: Tensor, sample: Sample) -> Tensor:
    """(R, K) with 1, 3 or 9 components: a scalar stays, a vector is R v, a tensor R T Rᵀ."""
    if values.shape[1] == 1:
        return values
    # As many rows as structures are those of structures, and of atoms only where each structure is one atom.
    of_rows = turns if len(values) == len(turns) else turns[sample.graph.batch]
    if values.shape[1] == 3:
        return torch.einsum("rxy,ry->rx", of_rows, values)
    return torch.einsum("rxy,ryz,rwz->rxw", of_rows, values.reshape(-1, 3, 3), of_rows).flatten(1)


def _turned(vectors: Tensor, turns: Tensor, of: Tensor) -> Tensor:
    """(K, 3) vectors, each by the turn of its structure; rows of one structure lie together."""
    counts: Sequence[int] = torch.bincount(of, minlength=len(turns)).tolist()
    return torch.cat([rows @ turn.T for rows, turn in zip(vectors.split(counts), turns, strict=True)])
