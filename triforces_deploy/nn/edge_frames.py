"""Rotations of spherical-harmonic coefficients into the frame of an edge, as polynomials without a singular direction."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from triforces_deploy.nn.constant import Constant
from triforces_deploy.nn.sphere import degrees, orders, products_with_vector

Polynomials = NDArray[np.float64]
"""(rows, columns, 2l+1, 2l+1): a matrix of homogeneous polynomials of degree 2l in w, a and b. The last two axes are the
powers of a and b; w has the rest."""


class EdgeFrames(nn.Module):
    """For each edge the orthogonal matrices that turn the edge onto the polar axis +y.

    A rotation about y more would do as well, and whoever uses the matrices must not depend on it; so the frame may jump
    where that suits. With the half turn P about x, which changes nothing but signs, an edge that points down (y < 0)
    becomes one that points up, and for those the shortest rotation onto y is

        q = (w, a, 0, b) ∝ (1 + y, −z, 0, x),    D^l_{mp} = Σ_{jk} c^{l,mp}_{jk} a^j b^k w^{2l−j−k},

    whose denominator is never below 1. Rows are those of :func:`frame_rows`, columns the coefficients of an atom.
    """

    def __init__(self, l_max: int, m_max: int) -> None:
        super().__init__()
        self.power = 2 * l_max
        rows = frame_rows(l_max, m_max)
        self.shape = (len(rows), (l_max + 1) ** 2)
        blocks, table = _wigner(l_max), np.zeros((*self.shape, self.power + 1, self.power + 1))
        for row, (degree, m) in zip(table, rows, strict=True):
            row[degree**2 : (degree + 1) ** 2] = blocks[degree][degree + m]
        powers = [(self.power - j - k, j, k) for j in range(self.power + 1) for k in range(self.power + 1 - j)]
        self.coefficients = Constant(np.stack([table[:, :, j, k].ravel() for _, j, k in powers]))
        # Products with zeros and ones pick powers in one operation each, forward and backward.
        self.pick = nn.ModuleList([Constant(np.eye(self.power + 1)[:, list(chosen)]) for chosen in zip(*powers, strict=True)])
        half_turn = [(-1.0) ** (degree + (m < 0)) for degree, m in zip(degrees(l_max), orders(l_max), strict=True)]
        self.signs = Constant(np.tile(half_turn, len(rows)))

    def forward(self, unit: Tensor) -> Tensor:
        """Unit vectors (E, 3) → matrices (E, rows, (l_max+1)²)."""
        x, y, z = unit.unbind(1)
        down = y < 0
        up, back = torch.where(down, -y, y), torch.where(down, -z, z)  # |y| has no derivative at 0
        # |q|² = 2 (1 + y) for a unit vector; the sum also normalises the direction that a vector of length 0 has.
        scale = torch.rsqrt((1.0 + up).square() + back.square() + x.square())
        quaternion = ((1.0 + up) * scale, -back * scale, x * scale)
        w, a, b = (_powers(t, self.power) @ pick(t) for t, pick in zip(quaternion, self.pick, strict=True))
        monomials = w * a * b
        table, signs = cast(Tensor, self.coefficients(unit)), cast(Tensor, self.signs(unit))
        matrices: Tensor = (monomials @ table) * torch.where(down[:, None], signs, torch.ones_like(signs))
        return cast(Tensor, matrices.unflatten(1, self.shape))


def frame_rows(l_max: int, m_max: int) -> list[tuple[int, int]]:
    """Degree and order of each row of :class:`EdgeFrames`: orders 0, 1, −1, 2, −2, … up to m_max, degrees from |m| on."""
    signed = [sign * m for m in range(m_max + 1) for sign in ((1, -1) if m else (1,))]
    return [(degree, m) for m in signed for degree in range(abs(m), l_max + 1)]


def _powers(t: Tensor, highest: int) -> Tensor:
    """1, t, t², …: (E,) → (E, highest + 1)."""
    powers = [torch.ones_like(t)]
    for _ in range(highest):
        powers.append(powers[-1] * t)
    return torch.stack(powers, dim=1)


def _wigner(l_max: int) -> list[Polynomials]:
    """D^l of a unit quaternion (w, a, 0, b) for l = 0 … l_max, all brought to degree 2 l_max by factors w² + a² + b² = 1.

    Climbs from the rotation matrix: D^l is what D¹ ⊗ D^{l−1} does to the part of degree l in it.
    """
    rotation = np.zeros((3, 3, 3, 3))
    squares = ((0, 0), (2, 0), (0, 2))  # w², a², b²
    for k, signs in enumerate([(1, 1, -1), (1, -1, -1), (1, -1, 1)]):
        for (i, j), sign in zip(squares, signs, strict=True):
            rotation[k, k, i, j] = sign
    rotation[0, 2, 1, 1] = rotation[2, 0, 1, 1] = 2.0
    rotation[1, 0, 0, 1], rotation[0, 1, 0, 1] = 2.0, -2.0
    rotation[2, 1, 1, 0], rotation[1, 2, 1, 0] = 2.0, -2.0
    blocks = [np.ones((1, 1, 1, 1))]
    for degree in range(1, l_max + 1):
        part = products_with_vector(degree)
        norm = np.square(part).sum() / (2 * degree + 1)
        inner = np.einsum("imp,mnst,jnq->ijpqst", part, blocks[-1], part) / norm
        terms = [_times(inner[i, j], rotation[i, j]) for i in range(3) for j in range(3)]
        blocks.append(np.sum(terms, axis=0))
    one = np.zeros((3, 3))
    for power in squares:
        one[power] = 1.0
    for degree in range(l_max + 1):
        for _ in range(l_max - degree):
            blocks[degree] = _times(blocks[degree], one)
    return blocks


def _times(matrix: Polynomials, quadratic: NDArray[np.float64]) -> Polynomials:
    """A matrix of polynomials times one polynomial of degree 2, (3, 3)."""
    n = matrix.shape[-1]
    product = np.zeros((*matrix.shape[:2], n + 2, n + 2))
    for j, k in zip(*np.nonzero(quadratic), strict=True):
        product[:, :, j : j + n, k : k + n] += quadratic[j, k] * matrix
    return product
