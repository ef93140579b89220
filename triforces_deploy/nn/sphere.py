"""Functions on the sphere as coefficients of real spherical harmonics, and as values on a grid.

Here and in the files that build on it, (l_max+1)² coefficients belong to the harmonics of :func:`e3nn_component`: degrees
0 … l_max one after another, orders −l … l within each, polar axis y.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from triforces_deploy.nn.constant import Constant
from triforces_deploy.nn.spherical import e3nn_component

Array = NDArray[np.float64]


def degrees(l_max: int) -> list[int]:
    """The degree of each coefficient."""
    return [degree for degree in range(l_max + 1) for _ in range(2 * degree + 1)]


def orders(l_max: int) -> list[int]:
    """The order m of each coefficient."""
    return [m for degree in range(l_max + 1) for m in range(-degree, degree + 1)]


def orthonormal(unit: Array, l_max: int) -> Array:
    """The harmonics, normalised so that ∫ Y_lm Y_l'm' dΩ = δ_ll' δ_mm': (K, 3) → (K, (l_max+1)²)."""
    values: Array = e3nn_component(torch.from_numpy(unit), l_max).numpy() / math.sqrt(4.0 * math.pi)
    return values


def products_with_vector(degree: int) -> Array:
    """∫ u_i Y_{l−1,m} Y_{l,p} dΩ for l = ``degree`` ≥ 1, (3, 2l−1, 2l+1), u being the unit vector (x, y, z)."""
    cosines, weights = np.polynomial.legendre.leggauss(degree + 1)
    unit, area = _grid(cosines, weights, 2 * degree + 2)
    values = orthonormal(unit, degree)
    below, here = values[:, (degree - 1) ** 2 : degree**2], values[:, degree**2 :]
    product: Array = np.einsum("k,ki,km,kp->imp", area, unit, below, here)
    return product


class SphereGrid(nn.Module):
    """Values on a grid of ``n_polar`` × ``n_azimuths`` directions, and the coefficients of what is done with them there.

    Polar angles are (b + ½) π / n_polar. With n_polar > 2 l_max and n_azimuths > 2 l_max, back and forth is the identity.
    What is done point by point in between is not limited to l_max: the result depends on the grid's orientation, the less
    the finer it is.
    """

    def __init__(self, l_max: int, n_polar: int, n_azimuths: int) -> None:
        super().__init__()
        angles = (np.arange(n_polar, dtype=np.float64) + 0.5) * (math.pi / n_polar)
        unit, area = _grid(np.cos(angles), _fejer_weights(angles), n_azimuths)
        values = orthonormal(unit, l_max)
        self.to_grid = Constant(values)
        self.from_grid = Constant((values * area[:, None]).T)

    def points(self, coefficients: Tensor) -> Tensor:
        """(N, (l_max+1)², C) → (N, n_polar·n_azimuths, C)."""
        return torch.matmul(self.to_grid(coefficients), coefficients)

    def coefficients(self, points: Tensor) -> Tensor:
        """(N, n_polar·n_azimuths, C) → (N, (l_max+1)², C)."""
        return torch.matmul(self.from_grid(points), points)


def _grid(cosines: Array, weights: Array, n_azimuths: int) -> tuple[Array, Array]:
    """Unit vectors with y of these cosines, azimuths from z towards x, (K, 3), and the area that each stands for, (K,)."""
    azimuths = np.arange(n_azimuths) * (2.0 * math.pi / n_azimuths)
    y, azimuth = (t.ravel() for t in np.meshgrid(cosines, azimuths, indexing="ij"))
    sines = np.sqrt(1.0 - y**2)
    unit = np.stack([sines * np.sin(azimuth), y, sines * np.cos(azimuth)], axis=1)
    return unit, np.repeat(weights, n_azimuths) * (2.0 * math.pi / n_azimuths)


def _fejer_weights(angles: Array) -> Array:
    """Of Fejér's first rule, ∫_{−1}^{1} f(y) dy = Σ_b w_b f(cos θ_b), exact for polynomials of degree below n_polar."""
    n = len(angles)
    k = np.arange(1, n // 2 + 1)
    weights: Array = (2.0 - 4.0 * (np.cos(2.0 * k * angles[:, None]) / (4.0 * k**2 - 1.0)).sum(1)) / n
    return weights
