"""Convolutions in the frame of an edge, where rotations about it are all that is left of the rotation group.

Features of an edge are a list with one tensor for each order |m| = 0 … m_max, whose columns are degree by channel,
degrees |m| … l_max: (E, n_0) for m = 0, and (E, 2, n_m) for the others, +m before −m. A turn of the frame by φ about the
edge rotates each pair by mφ, and every function here commutes with it.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional


def split_orders(x: Tensor, l_max: int, m_max: int) -> list[Tensor]:
    """Coefficients ordered by |m| first, (E, rows of EdgeFrames, C), → features by order."""
    sizes = [l_max + 1, *(2 * (l_max + 1 - m) for m in range(1, m_max + 1))]
    parts = x.split(sizes, dim=1)
    return [parts[0].flatten(1), *(part.unflatten(1, (2, -1)).flatten(2) for part in parts[1:])]


def join_orders(parts: list[Tensor], channels: int) -> Tensor:
    """The inverse of :func:`split_orders`."""
    return torch.cat([part.flatten(1).unflatten(1, (-1, channels)) for part in parts], dim=1)


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
