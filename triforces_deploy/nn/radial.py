"""Functions of the distance alone: lengths, a basis, and envelopes that end at a cutoff.

Everything computes in the type of its input. Each term of a model that is added when a neighbour comes within the cutoff
must vanish there with two derivatives, or energies and forces jump in molecular dynamics.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SHORTEST = 1e-8
"""Å. Lengths are kept above this, where sin(kr)/r already has its limit and every derivative is still finite."""


def lengths(vectors: Tensor) -> Tensor:
    """Euclidean lengths, (E, 3) → (E,) Å. A zero vector has length ``SHORTEST`` and derivative zero, never NaN."""
    return vectors.square().sum(dim=1).clamp_min(SHORTEST**2).sqrt()


def bessel(r: Tensor, cutoff: float, n: int) -> Tensor:
    """Spherical Bessel functions of order zero that vanish at the cutoff: sqrt(2/rc) sin(kπ r/rc) / r.

    Args:
        r: (E,) Å, positive; see :func:`lengths`.
        cutoff: rc, Å.
        n: number of functions, k = 1 … n.

    Returns:
        (E, n), Å^(-3/2).
    """
    wave_numbers = torch.arange(1, n + 1, dtype=r.dtype, device=r.device) * (math.pi / cutoff)
    return math.sqrt(2.0 / cutoff) * torch.sin(r[:, None] * wave_numbers) / r[:, None]


def gaussians(r: Tensor, cutoff: float, n: int, width: float) -> Tensor:
    """exp(−(r − μ_k)² / 2σ²) at n centres from 0 to the cutoff; they do not vanish there by themselves.

    Args:
        r: (E,) Å.
        cutoff: Å, the last centre.
        n: number of functions, at least 2.
        width: σ in units of the distance between two centres.

    Returns:
        (E, n).
    """
    spacing = cutoff / (n - 1)
    centres = torch.arange(n, dtype=r.dtype, device=r.device) * spacing
    return torch.exp((-0.5 / (width * spacing) ** 2) * (r[:, None] - centres).square())


def polynomial_envelope(r: Tensor, cutoff: float | Tensor, p: int) -> Tensor:
    """1 + O(x^p) at x = r/rc = 0 and O((1−x)³) at x = 1; zero beyond, hence C² everywhere.

    It is 1 − (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) − p(p+1)/2 x^(p+2), written as (1−x)³ Σ_{k<p} (k+1)(k+2)/2 x^k, which
    loses no digits near the cutoff and never turns negative.

    Args:
        r: (E,) Å, not negative.
        cutoff: rc, Å; one number or one per edge.
        p: how flat the envelope starts; Orb-v3 has 4.

    Returns:
        (E,) in [0, 1].
    """
    x = (r / cutoff).clamp(max=1.0)
    series = torch.zeros_like(x)
    for k in reversed(range(p)):
        series = series * x + (k + 1) * (k + 2) / 2
    rest = 1.0 - x
    return rest * rest * rest * series


def cosine_envelope(r: Tensor, cutoff: float | Tensor) -> Tensor:
    """½ (1 + cos(π r/rc)) within rc (Å), zero beyond; (E,) → (E,). Only C¹: its second derivative jumps at the cutoff."""
    return 0.5 * (1.0 + torch.cos(math.pi * (r / cutoff).clamp(max=1.0)))
