"""What a whole system is said to be: its charge, its spin and the data set whose labels are wanted, as one vector."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Kind = Literal["table", "waves", "linear"]
MOST = 100
"""Highest charge, of either sign, and highest spin multiplicity."""


class NumberEmbedding(nn.Module):
    """An integer as a vector: a row of a table, sines and cosines of random frequencies, or a linear function of it.

    The number is fixed at construction. ``unset`` is the value that says nothing; with waves it gives zeros, and a linear
    function sees −100 in its place.
    """

    def __init__(self, kind: Kind, number: int, lowest: int, unset: int | None, channels: int) -> None:
        super().__init__()
        self.kind, self.number, self.lowest, self.unset = kind, number, lowest, unset
        if kind == "table":
            self.table = nn.Embedding(MOST - lowest + 1, channels)
        elif kind == "waves":
            self.frequencies = nn.Parameter(torch.randn(channels // 2))
        else:
            self.line = nn.Linear(1, channels)

    def forward(self) -> Tensor:
        """(C,)."""
        if self.kind == "table":
            return self.table.weight[self.number - self.lowest]
        if self.kind == "linear":
            return self.line.weight[:, 0] * (-100 if self.number == self.unset else self.number) + self.line.bias
        phase = self.frequencies * (2.0 * math.pi * self.number)
        waves = torch.cat([phase.sin(), phase.cos()])
        return waves * 0.0 if self.number == self.unset else waves


class SystemEmbedding(nn.Module):
    """s = SiLU(W [charge ‖ spin ‖ data set] + b), the same for all atoms of all structures that the model is given."""

    def __init__(self, kind: Kind, charge: int, spin: int, dataset: int | None, n_datasets: int, channels: int) -> None:
        super().__init__()
        self.charge = NumberEmbedding(kind, charge, -MOST, None, channels)
        self.spin = NumberEmbedding(kind, spin, 0, 0, channels)
        self.dataset = dataset
        self.datasets = nn.Embedding(n_datasets, channels) if n_datasets else None
        self.mix = nn.Linear((3 if n_datasets else 2) * channels, channels)

    def forward(self) -> Tensor:
        """(C,)."""
        parts = [self.charge(), self.spin()]
        if self.datasets is not None:
            parts.append(self.datasets.weight[self.dataset])
        return functional.silu(self.mix(torch.cat(parts)))
