"""Wigner 3j symbols of the real spherical harmonics of :mod:`triforces_deploy.nn.spherical`, from exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache

import numpy as np
from numpy.typing import NDArray


@cache
def wigner_3j(l1: int, l2: int, l3: int) -> NDArray[np.float64]:
    """The one tensor that rotations of all three indices leave alone: C = (D¹ ⊗ D² ⊗ D³) C, of unit norm.

    Its sign makes the entry of m = 0, 0, 0 positive, or the first entry that is not zero where that one is: with an even
    sum of degrees it is then ∫ Y_l1 Y_l2 Y_l3 up to a positive factor.

    Args:
        l1: degrees that fulfil |l1 − l2| ≤ l3 ≤ l1 + l2.
        l2: see l1.
        l3: see l1.

    Returns:
        (2l1+1, 2l2+1, 2l3+1), m = −l … l along each side, read-only.
    """
    symbol = np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1))
    for m1 in range(-l1, l1 + 1):
        for m2 in range(max(-l2, -l3 - m1), min(l2, l3 - m1) + 1):
            symbol[m1 + l1, m2 + l2, -m1 - m2 + l3] = _racah(l1, l2, l3, m1, m2)
    rotated = np.einsum("am,bn,co,mno->abc", *(_from_complex(degree) for degree in (l1, l2, l3)), symbol)
    # With an odd sum of degrees all entries are imaginary, with an even one all are real.
    real = rotated.imag if (l1 + l2 + l3) % 2 else rotated.real
    real[np.abs(real) < 1e-14] = 0.0
    decides = real[l1, l2, l3] or real.ravel()[np.flatnonzero(real)[0]]
    result = np.ascontiguousarray(real * np.sign(decides))
    result.flags.writeable = False
    return result


def _racah(l1: int, l2: int, l3: int, m1: int, m2: int) -> float:
    """The symbol of complex harmonics with m3 = −m1 − m2, by Racah's formula; rounded once, at the end."""
    f = math.factorial
    m3 = -m1 - m2
    lowest = max(0, l2 - l3 - m1, l1 - l3 + m2)
    total = Fraction(0)
    for t in range(lowest, min(l1 + l2 - l3, l1 - m1, l2 + m2) + 1):
        below = f(t) * f(l3 - l2 + t + m1) * f(l3 - l1 + t - m2) * f(l1 + l2 - l3 - t) * f(l1 - t - m1) * f(l2 - t + m2)
        total += Fraction((-1) ** t, below)
    triangle = Fraction(f(l1 + l2 - l3) * f(l1 - l2 + l3) * f(-l1 + l2 + l3), f(l1 + l2 + l3 + 1))
    sides = math.prod(f(degree + m) * f(degree - m) for degree, m in ((l1, m1), (l2, m2), (l3, m3)))
    sign = -1.0 if (l1 - l2 - m3) % 2 != (total < 0) else 1.0
    return sign * math.sqrt(triangle * sides * total * total)


def _from_complex(degree: int) -> NDArray[np.complex128]:
    """(2l+1, 2l+1): conjugate of what gives the real harmonics (rows) from the complex ones with Condon-Shortley sign."""
    matrix = np.zeros((2 * degree + 1, 2 * degree + 1), dtype=np.complex128)
    matrix[degree, degree] = 1.0
    for m in range(1, degree + 1):
        sign = (-1.0) ** m / math.sqrt(2.0)
        matrix[degree + m, degree + m], matrix[degree + m, degree - m] = sign, 1.0 / math.sqrt(2.0)
        matrix[degree - m, degree + m], matrix[degree - m, degree - m] = -1j * sign, 1j / math.sqrt(2.0)
    return matrix.conj()
