"""Convolutions in the frame of an edge, where rotations about it are all that is left of the rotation group.

Features of an edge are a list with one tensor for m = 0 and two, +m before −m, for each |m| = 1 … m_max. Their columns are
degree by channel, degrees |m| … l_max: (E, n_m). A turn of the frame by φ about the edge rotates each pair by mφ, and every
function here commutes with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional


def weighted_orders(rows: Tensor, weights: Tensor, l_max: int, m_max: int) -> list[Tensor]:
    """Features by order from rows in the frame.

    Args:
        rows: (E, rows, K) in the order of :class:`~triforces_deploy.nn.edge_frames.EdgeFrames`.
        weights: (E, n K), multiplies each |m|, degree and column; ±m share theirs.
        l_max: highest degree.
        m_max: highest order.
    """
    n_degrees = [l_max + 1 - m for m in range(m_max + 1)]
    parts = rows.split([n for m, n in enumerate(n_degrees) for _ in range(2 if m else 1)], dim=1)
    of_order = weights.split([n * rows.shape[2] for n in n_degrees], dim=1)
    return [part.flatten(1) * of_order[(k + 1) // 2] for k, part in enumerate(parts)]


class Pair(NamedTuple):
    """A complex map W₁ + i W₂ as the three real ones, (n_in, n_out), that suffice for it."""

    first: Tensor
    """W₁."""
    down: Tensor
    """−(W₁ + W₂)."""
    up: Tensor
    """W₂ − W₁."""


class SO2Convolution(nn.Module):
    """A linear map for each |m|; for m > 0 it is a complex one, y_{+m} + i y_{−m} = (W₁ + i W₂)(x_{+m} + i x_{−m})."""

    def __init__(self, l_max: int, m_max: int, n_in: int, n_out: int, n_gates: int = 0) -> None:
        super().__init__()
        self.zero = nn.Linear((l_max + 1) * n_in, n_gates + (l_max + 1) * n_out)
        self.pairs = nn.ModuleList()
        for m in range(1, m_max + 1):
            n = l_max + 1 - m
            pair = nn.Linear(n * n_in, 2 * n * n_out, bias=False)
            with torch.no_grad():
                pair.weight /= 2.0**0.5
            self.pairs.append(pair)

    def complex_maps(self) -> list[Pair]:
        """Those for m = 1 …, made once for all edges."""
        return [Pair(*_three(cast(nn.Linear, pair).weight)) for pair in self.pairs]

    def forward(self, x: list[Tensor], maps: list[Pair]) -> list[Tensor]:
        """Features by order → features by order; the first n_gates columns of m = 0 are further scalars."""
        return [self.zero(x[0]), *(y for k, pair in enumerate(maps) for y in _complex(x[2 * k + 1], x[2 * k + 2], pair))]


def _three(weight: Tensor) -> Iterator[Tensor]:
    first, second = weight.chunk(2)
    yield from (first.t(), -(first + second).t(), (second - first).t())


def _complex(real: Tensor, imaginary: Tensor, pair: Pair) -> tuple[Tensor, Tensor]:
    """Three real products instead of four."""
    common = (real + imaginary) @ pair.first
    return torch.addmm(common, imaginary, pair.down), torch.addmm(common, real, pair.up)


def gated(x: list[Tensor], l_max: int) -> list[Tensor]:
    """SiLU of the scalars; each other degree times the sigmoid of its gates, the first l_max · channels columns of m = 0."""
    channels = x[0].shape[1] // (2 * l_max + 1)
    gates, scalars, others = x[0].split([l_max * channels, channels, l_max * channels], dim=1)
    gates = torch.sigmoid(gates)
    zero = torch.cat([functional.silu(scalars), others * gates], dim=1)
    return [zero, *(part * gates[:, k // 2 * channels :] for k, part in enumerate(x[1:]))]
