"""The named precisions of a network. Edge vectors and sums over atoms are float64 in all of them."""

from __future__ import annotations

import dataclasses

import torch


@dataclasses.dataclass(frozen=True)
class Precision:
    """What one name means."""

    dtype: torch.dtype
    """Type of weights and features."""
    parity: float
    """Largest deviation allowed between two back ends, relative to the largest value."""


PRECISIONS = {
    "float64": Precision(torch.float64, parity=1e-10),
    "float32": Precision(torch.float32, parity=1e-5),
}
