"""Real spherical harmonics as polynomials of a unit vector."""

from __future__ import annotations

import math

import torch
from torch import Tensor

L_MAX = 8
"""Highest degree that has been checked."""


def spherical_harmonics(unit: Tensor, l_max: int) -> Tensor:
    """Real spherical harmonics, orthonormal on the sphere: ∫ Y_lm Y_l'm' dΩ = δ_ll' δ_mm'.

    The polar axis is z and there is no Condon-Shortley sign, so that degree 1 is sqrt(3/4π) (y, z, x). With
    A_m + iB_m = (x + iy)^m, Y_{l,m} = Q_l^m(z) A_m and Y_{l,-m} = Q_l^m(z) B_m; both factors come from short
    recursions in x, y and z, free of angles and of divisions, hence smooth at the poles too.

    Args:
        unit: (E, 3) unit vectors.
        l_max: highest degree.

    Returns:
        (E, (l_max+1)²): degrees 0 … l_max one after another, m = −l … l within each.
    """
    x, y, z = unit.unbind(dim=1)
    azimuthal = _azimuthal(x, y, l_max)
    columns: dict[tuple[int, int], Tensor] = {}
    for m, (cosine, sine) in enumerate(azimuthal):
        for degree, polar in enumerate(_polar(z, m, l_max), start=m):
            columns[degree, m] = polar * cosine
            if m:
                columns[degree, -m] = polar * sine
    return torch.stack([columns[degree, m] for degree in range(l_max + 1) for m in range(-degree, degree + 1)], dim=1)


def e3nn_component(unit: Tensor, l_max: int) -> Tensor:
    """Real spherical harmonics in e3nn's "component" normalisation, which Orb-v3 uses.

    The polar axis is y, so that degree 1 is sqrt(3) (x, y, z), and Σ_m Y_lm² = 2l + 1 on the sphere.

    Args:
        unit: (E, 3) unit vectors.
        l_max: highest degree.

    Returns:
        (E, (l_max+1)²).
    """
    return math.sqrt(4.0 * math.pi) * spherical_harmonics(unit.roll(1, dims=1), l_max)


def _azimuthal(x: Tensor, y: Tensor, l_max: int) -> list[tuple[Tensor, Tensor]]:
    """Real and imaginary part of (x + iy)^m for m = 0 … l_max."""
    powers = [(torch.ones_like(x), torch.zeros_like(x))]
    for _ in range(l_max):
        cosine, sine = powers[-1]
        powers.append((x * cosine - y * sine, x * sine + y * cosine))
    return powers


def _polar(z: Tensor, m: int, l_max: int) -> list[Tensor]:
    """Q_l^m(z) for l = m … l_max: the associated Legendre function without its (1−z²)^(m/2), normalised.

    Starts from the constant Q_m^m and climbs by  Q_l = a_l (z Q_{l−1} − Q_{l−2} / a_{l−1}),  a_l² = (4l²−1)/(l²−m²).
    """
    start = math.sqrt((1 if m == 0 else 2) / (4.0 * math.pi) * math.prod((2 * k + 1) / (2 * k) for k in range(1, m + 1)))
    ladder = [torch.full_like(z, start)]
    below = torch.zeros_like(z)
    a_below = 1.0
    for degree in range(m + 1, l_max + 1):
        a = math.sqrt((4 * degree**2 - 1) / (degree**2 - m**2))
        here = ladder[-1]
        ladder.append(a * (z * here - below / a_below))
        below, a_below = here, a
    return ladder
