"""Products of many small matrices with as many sets of rows."""

from __future__ import annotations

from torch import Tensor


def small_product(matrices: Tensor, x: Tensor) -> Tensor:
    """(E, a, b) times (E, b, K) → (E, a, K), column by column.

    A library takes several times as long for matrices of a few rows, one for each edge, and a compiler joins this with
    whatever stands before and behind it.
    """
    pairs = zip(matrices.unbind(2), x.unbind(1), strict=True)
    first, *rest = (column[:, :, None] * row[:, None] for column, row in pairs)
    return sum(rest, first)
