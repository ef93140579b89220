"""The only file that sums over edges or atoms."""

from __future__ import annotations

import torch
from torch import Tensor


def scatter_sum(values: Tensor, index: Tensor, n_rows: int) -> Tensor:
    """Add up the rows of ``values`` that share an index.

    Args:
        values: (K, …).
        index: (K,) int64, 0 … n_rows−1. Sorted indices are about three times faster on a CPU.
        n_rows: number of rows of the result.

    Returns:
        (n_rows, …); rows that no index names are zero.
    """
    return torch.zeros((n_rows, *values.shape[1:]), dtype=values.dtype, device=values.device).index_add(0, index, values)


def segment_sum(values: Tensor, offsets: Tensor) -> Tensor:
    """Add up consecutive rows, one atom's after another's: without atomic additions, so the same bits on any device.

    Args:
        values: (K, …).
        offsets: (n+1,) int64, rising, at most K; segment s is the rows from offsets[s] up to offsets[s+1].

    Returns:
        (n, …); empty segments are zero.
    """
    # "unsafe" leaves out checks of the offsets that would make a GPU's host wait.
    return torch.segment_reduce(values, "sum", offsets=offsets, axis=0, unsafe=True)


def accumulate(total: Tensor, index: Tensor, values: Tensor) -> None:
    """Add rows of ``values`` (K, …) to those of ``total`` (n_rows, …) that ``index`` (K,) names, in place."""
    total.index_add_(0, index, values)


OPERATOR = torch.ops.aten.index_add.default
"""What a captured graph calls :func:`scatter_sum` and the derivative of a gather; export looks for it."""
