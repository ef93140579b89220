"""Products of many small matrices with as many sets of rows."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor


def small_product(matrices: Tensor, x: Tensor) -> Tensor:
    """(E, a, b) times (E, b, K) → (E, a, K), column by column.

    A library takes several times as long for matrices of a few rows, one for each edge, and a compiler joins this with
    whatever stands before and behind it.
    """
    return cast(Tensor, _SmallProduct.apply(matrices, x))


class _SmallProduct(torch.autograd.Function):
    """The derivative by the matrices sums over K, which is long: that is a library's."""

    @staticmethod
    def forward(ctx: Any, matrices: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(matrices, x)
        columns, rows = matrices.unsqueeze(3).unbind(2), x.unsqueeze(1).unbind(2)
        total = columns[0] * rows[0]
        for column, row in zip(columns[1:], rows[1:], strict=True):
            total = torch.addcmul(total, column, row)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        matrices, x = ctx.saved_tensors
        return gradient @ x.transpose(1, 2), small_product(matrices.transpose(1, 2), gradient)
