"""Masked elements (TriForces, eq. 12): L = −1/|M| Σ_{i∈M} log p(Z_i | G̃) over the masked atoms M.

A masked atom has number 0, whose row of every table of elements is reserved for it. It counts as such in the composition.
MACE has a row for each of its elements and none besides: to it a masked atom is of no element at all, all zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from triforces_deploy.nn.mlp import mlp
from triforces_deploy.streams.composition import columns
from triforces_deploy.training.objectives.base import Seen, Term
from triforces_deploy.training.objectives.config import MaskedConfig


class Masked(Term):
    """Cross entropy over the elements of the model, from the joint features.

    Args:
        config: sizes.
        widths: features of each stream, by name.
        numbers: atomic numbers that the model knows.
    """

    column: Tensor

    def __init__(self, config: MaskedConfig, widths: Mapping[str, int], numbers: Sequence[int]) -> None:
        super().__init__()
        self.layers = mlp([sum(widths.values()), *config.hidden, len(numbers)])
        self.register_buffer("column", columns(numbers), persistent=False)

    def forward(self, seen: Seen) -> Tensor:
        """0 where nothing is masked."""
        masked = torch.nonzero(seen.views.graph.numbers == 0)[:, 0]
        logits = self.layers(seen.joint().index_select(0, masked))
        labels = self.column.index_select(0, seen.views.numbers.index_select(0, masked))
        return functional.cross_entropy(logits, labels, reduction="sum") / max(1, len(masked))
