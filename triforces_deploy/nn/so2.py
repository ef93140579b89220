"""Convolutions in the frame of an edge, where rotations about it are all that is left of the rotation group.

Features of an edge are a list with one tensor for each order |m| = 0 … m_max, whose columns are degree by channel,
degrees |m| … l_max: (E, n_0) for m = 0, and (E, 2, n_m) for the others, +m before −m. A turn of the frame by φ about the
edge rotates each pair by mφ, and every function here commutes with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional


def join_orders(ends: Sequence[list[Tensor]], weights: Tensor, m_max: int) -> list[Tensor]:
    """Rows in the frame, as :func:`~triforces_deploy.nn.edge_frames.into_frames` gives them, → features by order.

    Args:
        ends: for each atom of an edge, for each degree (E, rows, K); their channels stand side by side.
        weights: (E, n), multiplies each order, degree, end and channel; ±m share theirs.
        m_max: highest order that is wanted.
    """
    weight = iter(weights.split(ends[0][0].shape[2], dim=1))
    parts = []
    for m in range(m_max + 1):
        of_order = slice(2 * m - 1, 2 * m + 1) if m else slice(1)
        degrees = range(m, len(ends[0]))
        pieces = [end[degree][:, of_order] * next(weight)[:, None] for degree in degrees for end in ends]
        joined = torch.cat(pieces, dim=2)
        parts.append(joined if m else joined[:, 0])
    return parts


def split_orders(parts: list[Tensor], l_max: int) -> list[Tensor]:
    """Features by order → for each degree (E, rows, K), without weights."""
    first, *pairs = (part.unflatten(-1, (l_max + 1 - m, -1)) for m, part in enumerate(parts))
    return [
        torch.cat([first[:, degree, None], *(pair[:, :, degree - m] for m, pair in enumerate(pairs[:degree], start=1))], dim=1)
        for degree in range(l_max + 1)
    ]


class SO2Convolution(nn.Module):
    """A linear map for each |m|; for m > 0 it is a complex one, y_{+m} + i y_{−m} = (W₁ + i W₂)(x_{+m} + i x_{−m})."""

    def __init__(self, l_max: int, m_max: int, n_in: int, n_out: int, n_gates: int = 0) -> None:
        super().__init__()
        self.n_gates = n_gates
        self.zero = nn.Linear((l_max + 1) * n_in, n_gates + (l_max + 1) * n_out)
        self.pairs = nn.ModuleList()
        for m in range(1, m_max + 1):
            n = l_max + 1 - m
            pair = nn.Linear(n * n_in, 2 * n * n_out, bias=False)
            with torch.no_grad():
                pair.weight /= 2.0**0.5
            self.pairs.append(pair)

    def forward(self, x: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Features by order → ``n_gates`` further scalars, (E, n_gates), and features by order."""
        zero = self.zero(x[0])
        gates, first = zero[:, : self.n_gates], zero[:, self.n_gates :]
        return gates, [first, *(_complex(part, cast(nn.Linear, f).weight) for part, f in zip(x[1:], self.pairs, strict=True))]


def _complex(x: Tensor, weight: Tensor) -> Tensor:
    """(E, 2, n_in) by W₁ over W₂, (2 n_out, n_in), → (E, 2, n_out), with three real products instead of four."""
    real, imaginary = x.unbind(1)
    first, second = weight.chunk(2)
    common = functional.linear(real + imaginary, first)
    return torch.stack(
        [
            common - functional.linear(imaginary, first + second),
            common + functional.linear(real, second - first),
        ],
        dim=1,
    )


def gated(gates: Tensor, x: list[Tensor], l_max: int) -> list[Tensor]:
    """SiLU of the scalars; each other degree times the sigmoid of its gates, (E, l_max · channels)."""
    gates = torch.sigmoid(gates)
    channels = gates.shape[1] // l_max
    zero = torch.cat([functional.silu(x[0][:, :channels]), x[0][:, channels:] * gates], dim=1)
    return [zero, *(part * gates[:, None, (m - 1) * channels :] for m, part in enumerate(x[1:], start=1))]
