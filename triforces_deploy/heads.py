"""Readouts of the concatenated features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from triforces_deploy.nn.mlp import mlp


class EnergyHead(nn.Module):
    """A perceptron on every atom, ε(h_i); the energy is the sum, hence extensive and separable."""

    def __init__(self, width: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.layers = mlp([width, *hidden, 1])

    @property
    def dtype(self) -> torch.dtype:
        """Precision in which the network computes."""
        return next(self.parameters()).dtype

    def forward(self, features: Tensor) -> Tensor:
        """(N, width) → (N,) in units of the model's scale."""
        return cast(Tensor, self.layers(features)).squeeze(1)
