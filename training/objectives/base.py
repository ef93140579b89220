"""What a term of the objective reads, and what it promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from triforces_deploy.graph import Graph
from triforces_deploy.heads import mean_over_atoms


class Views(NamedTuple):
    """Two views of each of S structures, as one batch of 2S: first all first views, then all second ones; N atoms."""

    graph: Graph
    """Masked atoms have number 0, in the composition too."""
    noise: Tensor
    """(N, 3) float64, Å. What was added to the positions, in the orientation of the view."""
    sigma: Tensor
    """(N,) float64, Å. Its standard deviation."""
    numbers: Tensor
    """(N,) int64. The true elements."""
    pairs: Tensor
    """(2, M) int64. Atoms of first and of second views that are the same atom of the same structure."""
    key: int
    """Of the batch; whatever a term draws at random is a function of it."""


class Seen(NamedTuple):
    """The views and what the model makes of them."""

    views: Views
    graph: Graph
    """That of the views, with edge vectors that can be differentiated by where a term needs it."""
    streams: dict[str, Tensor]
    """(N, width of the stream) by name."""
    energies: Tensor | None
    """(N,) eV, without the references of the elements; only where a term asks for it."""

    def joint(self) -> Tensor:
        """(N, D). All streams side by side."""
        return torch.cat(list(self.streams.values()), dim=1)

    def pooled(self, features: Tensor) -> Tensor:
        """(2S, D). Means over the atoms of each view."""
        return mean_over_atoms(features, self.graph)[0]


class Term(nn.Module, ABC):
    """One part of the objective, with the heads that it needs, all there when it is made."""

    reads_energies = False
    """Whether it needs :attr:`Seen.energies`, and edge vectors to differentiate them by."""

    @abstractmethod
    def forward(self, seen: Seen) -> Tensor:
        """The unweighted loss, ()."""


def paired(seen: Seen, level: str, features: Tensor) -> tuple[Tensor, Tensor]:
    """Features of first and second views in step: (M, D) each of atoms, or (S, D) of structures."""
    if level == "graph":
        first, second = seen.pooled(features).chunk(2)
        return first, second
    return features.index_select(0, seen.views.pairs[0]), features.index_select(0, seen.views.pairs[1])
