"""Linear maps whose results blocks may keep for the backward pass; see nn/blocks.py.

Of all that a layer computes, products with large matrices cost the most for each number: those are kept, the rest is
computed again. With frozen weights in float32 on a CPU they are oneDNN's, which at these sizes takes 10 to 20 % less time
than the BLAS that torch uses on AMD's processors, and as much on Intel's.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from triforces_deploy.nn import blocks

LEAST = 128
"""Rows and columns of a matrix: for less, what oneDNN does before and after a product costs what it saves."""
LEAST_TERMS = 512
"""Of a sum that is rather kept than computed again."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute x Wᵀ + b: (K, n), (m, n) and (m,) → (K, m)."""
    if blocks.in_blocks() and x.dim() == 2 and min(weight.shape) >= LEAST and not weight.requires_grad:
        return cast(Tensor, _Product.apply(x, weight, bias))
    return functional.linear(x, weight, bias)


class Linear(nn.Linear):
    """``nn.Linear`` by :func:`linear`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """(K, n) → (K, m)."""
        return linear(input, self.weight, self.bias)


class _Product(torch.autograd.Function):
    """Differentiable in x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight  # not saved, lest blocks count it as what they keep
        if weight.shape[1] < LEAST_TERMS:
            return _product(x, weight, bias)
        return blocks.kept(lambda: _product(x, weight, bias))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _product(gradient, ctx.weight.t(), None), None, None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if weight.dtype != torch.float32 or weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return functional.linear(x, weight, bias)
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()  # of a piece of a matrix oneDNN has only its reference code, a thousand times slower
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""))
