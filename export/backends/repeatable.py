"""Exponentials in float64 whose last digit does not depend on the number of threads.

ONNX Runtime evaluates them with vector instructions and the end of each thread's share one by one, with another rounding;
where a share ends depends on the number of threads. Its powers are evaluated one by one throughout, so that exponentials
are written as powers of e: as fast, and wrong by no more than 1e-16 of the exponent. In float32 both ways round alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

A = torch.ops.aten


def _exp(x: Tensor) -> Tensor:
    return torch.pow(math.e, x) if x.dtype == torch.float64 else NotImplemented


def _sigmoid(x: Tensor) -> Tensor:
    return 1.0 / (1.0 + torch.pow(math.e, -x)) if x.dtype == torch.float64 else NotImplemented


def _silu(x: Tensor) -> Tensor:
    return x / (1.0 + torch.pow(math.e, -x)) if x.dtype == torch.float64 else NotImplemented


def _tanh(x: Tensor) -> Tensor:
    return 1.0 - 2.0 / (1.0 + torch.pow(math.e, 2.0 * x)) if x.dtype == torch.float64 else NotImplemented


def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    if x.dtype != torch.float64 or half_to_float:
        return NotImplemented
    exponentials = torch.pow(math.e, x - x.amax(dim, keepdim=True))
    return exponentials / exponentials.sum(dim, keepdim=True)


REPEATABLE: dict[Any, Callable[..., Any]] = {
    A.exp.default: _exp,
    A.sigmoid.default: _sigmoid,
    A.silu.default: _silu,
    A.tanh.default: _tanh,
    A._softmax.default: _softmax,
}
"""Operator → itself in float64; other types keep theirs."""
