"""Sums over all processes that share a batch, and the norm that needs them.

Several processes add up their gradients after the backward pass, each loss weighted by the process' share in what it is the
mean of. A loss that is a function of such sums is the same number everywhere, with the share 1/ranks; its gradient is ranks
times that process' part, so that the sum is the gradient of the one big batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn

_alone: list[bool] = []


@contextmanager
def alone() -> Iterator[None]:
    """Sum over this process only, for batches that every process has whole: validation's."""
    _alone.append(True)
    try:
        yield
    finally:
        _alone.pop()


def several() -> bool:
    """Whether other processes share the batch."""
    there = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    return there and not _alone


def all_sum(values: Tensor) -> Tensor:
    """Σ over processes, of the same shape and differentiable; each must call it as often as the others."""
    return cast(Tensor, _AllSum.apply(values)) if several() else values


class _AllSum(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total


def n_rows(values: Tensor) -> Tensor:
    """() How many rows there are in all processes; at least 1."""
    return all_sum(values.new_tensor(float(values.shape[0]))).clamp(min=1.0)


def mean(values: Tensor) -> Tensor:
    """() Mean of (K,) numbers over all processes; 0 of none."""
    return all_sum(values.sum()) / n_rows(values)


class BatchNorm(nn.Module):
    """(x − mean) / √(variance + ε) over the rows of all processes, in validation too; with ``affine`` then a·x + b.

    There are no running statistics: what uses it is dropped after pretraining.
    """

    def __init__(self, width: int, affine: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(K, width) → (K, width)."""
        n = n_rows(x)
        x = x - all_sum(x.sum(0)) / n
        x = x * (all_sum(x.square().sum(0)) / n + self.eps).rsqrt()
        return x if self.weight is None or self.bias is None else x * self.weight + self.bias


def projector(n_inputs: int, hidden: tuple[int, ...], width: int) -> nn.Sequential:
    """Linear layers with a batch norm and a ReLU after each but the last; not part of the model that comes out."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(n_inputs, size), BatchNorm(size), nn.ReLU()]
        n_inputs = size
    return nn.Sequential(*layers, nn.Linear(n_inputs, width))
