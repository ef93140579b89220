"""The test that an exchange of ghost rows does what it should, before any result depends on it.

With C the exchange and rows of whole numbers, whose sums are exact, x owned and anything on ghosts: ghosts must get their
owners' rows whole and owners keep theirs; a second C must change nothing; and Cᵀ must be its transpose,
(Cᵀ C x)_i = (1 + ghosts of i) x_i on owners and zero on ghosts, and ⟨C x, C x⟩ = ⟨x, Cᵀ C x⟩ over all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from triforces_deploy.exchange import Handler

Sum = Callable[[Sequence[float]], list[float]]
"""Numbers of this rank → their sums over all ranks. Every rank must call."""

COLUMNS = 5
"""Enough to tell rows from columns."""
WIDE_COLUMNS = 131
"""Three of the pieces in which our pair style sends float64 rows, the last one not full; in float32 two, and half a double."""
WIDE_ROWS = 2000
"""With more rows than this the wide test would take longer than 50 ms."""
SUBJECTS = 997
"""Values that tell one atom from another; small enough for exact sums of float32."""


def self_test(
    handler: Handler, n_owned: int, n_rows: int, wide: bool, ids: Tensor | None = None, total: Sum | None = None
) -> str:
    """Try an exchange in both precisions; every rank must call, with no atoms too, and all make the same exchanges.

    Args:
        handler: the exchange.
        n_owned: rows of atoms that this rank owns, the first ones.
        n_rows: those and the rows of ghosts.
        wide: whether to try wide rows, the same on all ranks.
        ids: (n_rows,) int64, the same number for a ghost and its owner, known without the exchange; None where it is not.
        total: sums over all ranks; None where there is no such thing.

    Returns:
        What is wrong, empty when nothing is.
    """
    wrong = [_one_precision(handler, n_owned, n_rows, columns, dtype, ids, total) for columns, dtype in _cases(wide)]
    return next(filter(None, wrong), "")


def _cases(wide: bool) -> list[tuple[int, torch.dtype]]:
    columns = WIDE_COLUMNS if wide else COLUMNS
    return [(columns, torch.float64), (columns, torch.float32)]


def _one_precision(
    handler: Handler, n_owned: int, n_rows: int, columns: int, dtype: torch.dtype, ids: Tensor | None, total: Sum | None
) -> str:
    own = slice(None, n_owned)
    ghosts = slice(n_owned, None)
    x = _pattern(torch.arange(n_rows) if ids is None else ids, columns, dtype)
    expected = x[ghosts].clone()
    x[ghosts] = -1.0
    y = handler.forward(x)
    again = handler.forward(y)
    back = handler.adjoint(y)
    known = handler.forward(back)  # tells every ghost how many copies its owner counted
    if ids is None:
        expected = y[ghosts, 1:2] * _ratios(columns, dtype)
        expected[:, 0] = 1.0
    there = torch.equal(y[own], x[own]) and torch.equal(y[ghosts], expected)
    copies = back[own, :1]
    home = torch.equal(back[own], copies * x[own]) and not bool(back[ghosts].any()) and bool((known[ghosts, 0] >= 2.0).all())
    # Before any verdict: the other ranks wait for this one.
    forward, backward = (0.0, 0.0) if total is None else total([_dot(y, y), _dot(x[own], back[own])])
    if not there:
        return "ghost atoms do not get the rows of their owners"
    if not torch.equal(again, y):
        return "rows change when they are exchanged twice"
    if not home or forward != backward:
        return "what ghost atoms hand back to their owners is not the transpose of what they get"
    return ""


def _pattern(ids: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    """(N, columns) whole numbers that tell atom and column; ones in the first column, which counts."""
    rows = (1 + ids % SUBJECTS)[:, None].to(dtype) * _ratios(columns, dtype)
    rows[:, 0] = 1.0
    return rows


def _ratios(columns: int, dtype: torch.dtype) -> Tensor:
    """1, 1, 2, 3, … from the second column on."""
    return (1 + (torch.arange(columns) - 1).clamp(min=0) % 7).to(dtype)


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a.to(torch.float64) * b.to(torch.float64)).sum())
