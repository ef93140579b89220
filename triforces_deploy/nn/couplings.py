"""Which products of features with themselves an equivariant polynomial needs, each once.

A set of features x has one vector x_l for each degree l = 0 … l_max. Products are built one factor at a time,

    p_{λ} = (…((x_l1 · x_l2)_λ2 · x_l3)_λ3 …)_λ,      (a · b)_{λm} = sqrt(2λ+1) Σ_{m1 m2} C_{m1 m2 m} a_{m1} b_{m2},

with C of :mod:`triforces_deploy.nn.wigner`. Many of them are the same polynomial, or zero, because the factors commute.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from functools import cache, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from triforces_deploy.nn.wigner import wigner_3j

Array = NDArray[np.float64]
INDEPENDENT = 1e-8
"""What must be left of a polynomial of unit norm beside all earlier ones; rounding leaves about 1e-13."""
N_POINTS = 400
"""Where polynomials are compared; more than there are of one order and degree in the sizes that :func:`couplings` takes."""
MOST = {1: 8, 2: 8, 3: 4, 4: 3}
"""Order → highest degree of features. Beyond, the tables would take minutes and nobody has such models."""


class Product(NamedTuple):
    """A product of a shorter one with x_l."""

    parent: int
    """Index of the shorter one among those with one factor less; −1 where x_l is the only factor."""
    factor: int
    """l."""
    degree: int
    """λ."""


@dataclasses.dataclass(frozen=True)
class Couplings:
    """A basis of the equivariant polynomials of x, without the constant one."""

    levels: tuple[tuple[Product, ...], ...]
    """Products that something else is made of, of 1, 2, … factors. The first level is x_0, x_1, …"""
    terms: tuple[tuple[tuple[int, Product], ...], ...]
    """For each degree of the result the basis: number of factors and the last product, whose degree is that of the result."""


def coupling(l1: int, l2: int, degree: int) -> Array:
    """sqrt(2λ+1) C as (2λ+1, 2l1+1, 2l2+1): what makes (a · b)_λ of a ⊗ b."""
    return math.sqrt(2 * degree + 1) * wigner_3j(l1, l2, degree).transpose(2, 0, 1)


@cache
def couplings(l_max: int, l_out: int, order: int) -> Couplings:
    """The basis of polynomials up to an order, of features that change sign under inversion as x_l → (−1)^l x_l.

    Which products enter is decided at random points, always the same ones: of all products in a fixed order, each that
    is no combination of earlier ones. The basis belongs to the weights of a model and must never change.

    Args:
        l_max: highest degree of the features.
        l_out: highest degree of the results, which have the same parity (−1)^l.
        order: most factors.
    """
    points = np.random.default_rng(0).normal(size=(N_POINTS, (l_max + 1) ** 2))
    levels = [[Product(-1, degree, degree) for degree in range(l_max + 1)]]
    values = [[points[:, degree**2 : (degree + 1) ** 2] for degree in range(l_max + 1)]]
    terms: list[list[tuple[int, Product]]] = [[(1, Product(-1, degree, degree))] for degree in range(l_out + 1)]
    for length in range(2, order + 1):
        longer = _longer(levels, l_max)
        for degree in range(l_out + 1):
            # Odd polynomials of even features, and the reverse, are pseudovectors and the like.
            fits = [p for p in longer if p.degree == degree and (_sum_of_degrees(levels, p) + degree) % 2 == 0]
            columns = np.array([_value(values, p)[:, degree] for p in fits]).reshape(len(fits), len(points))
            terms[degree] += [(length, fits[k]) for k in _independent(columns)]
        levels.append(longer)
        values.append([_value(values, p) for p in longer] if length < order else [])
    return _pruned(levels, terms)


def values_of_terms(points: Array, l_max: int, degree: int, order: int) -> dict[int, Array]:
    """The component m = 0 of each term of one degree at some points: number of factors → (points, terms).

    Whoever has other polynomials of the same features finds from it how they are made of these.

    Args:
        points: (points, (l_max+1)²) features.
        l_max: see :func:`couplings`.
        degree: of the results.
        order: see :func:`couplings`.
    """
    plan = couplings(l_max, degree, order)
    values = [[points[:, d**2 : (d + 1) ** 2] for d in range(l_max + 1)]]
    for products in plan.levels[1:]:
        values.append([_value(values, product) for product in products])
    columns: dict[int, list[Array]] = {}
    for length, product in plan.terms[degree]:
        value = values[0][degree] if length == 1 else _value(values[: length - 1], product)
        columns.setdefault(length, []).append(value[:, degree])
    return {length: np.stack(of_length, axis=1) for length, of_length in columns.items()}


def expanded(plan: Couplings, degree: int) -> Iterator[tuple[NDArray[np.int64], Array]]:
    """Each term of one degree as a sum of monomials x_a x_b …, a ≤ b ≤ …, of the components of x.

    Args:
        plan: the basis.
        degree: of the results, L.

    Yields:
        Components of each monomial, (factors, M), and coefficients (2L+1, M), many of them zero.
    """
    size = len(plan.levels[0]) ** 2
    unit = np.eye(size)
    factors = [unit[d**2 : (d + 1) ** 2] for d in range(len(plan.levels[0]))]

    def multiplied(shorter: list[Array], product: Product) -> Array:
        first, second = shorter[product.parent], factors[product.factor]
        table = coupling((len(first) - 1) // 2, product.factor, product.degree)
        array: Array = np.einsum("cab,as,bt->cst", table, first, second, optimize=True)
        return array.reshape(len(array), -1)

    levels = [factors]
    for products in plan.levels[1:]:
        levels.append([multiplied(levels[-1], product) for product in products])
    sorted_axes = cache(partial(_monomials, size))
    for length, product in plan.terms[degree]:
        array = factors[degree] if length == 1 else multiplied(levels[length - 2], product)
        monomials, place = sorted_axes(length)
        yield monomials, np.array([np.bincount(place, row, monomials.shape[1]) for row in array])


def _monomials(size: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Those of so many factors, (length, M), and which of them each entry of a flat tensor belongs to, (size**length,)."""
    axes = np.sort(np.indices((size,) * length).reshape(length, -1), axis=0)
    monomials, place = np.unique(axes, axis=1, return_inverse=True)
    return monomials, place.ravel()


def _longer(levels: list[list[Product]], l_max: int) -> list[Product]:
    """Every product with one factor more, its factors of rising degree: any other order gives combinations of these."""
    return [
        Product(parent, factor, degree)
        for parent, shorter in enumerate(levels[-1])
        for factor in range(shorter.factor, l_max + 1)
        for degree in range(abs(shorter.degree - factor), shorter.degree + factor + 1)
    ]


def _value(values: list[list[Array]], product: Product) -> Array:
    """(points, 2λ+1)."""
    shorter = values[-1][product.parent]
    factor = values[0][product.factor]
    table = coupling((shorter.shape[1] - 1) // 2, product.factor, product.degree)
    value: Array = np.einsum("cab,sa,sb->sc", table, shorter, factor, optimize=True)
    return value


def _sum_of_degrees(levels: list[list[Product]], product: Product) -> int:
    total = product.factor
    for level in reversed(levels):
        product = level[product.parent]
        total += product.factor
    return total


def _independent(rows: Array) -> list[int]:
    """Indices of rows that are no combination of rows before them."""
    kept: list[int] = []
    basis = np.zeros((0, rows.shape[1]))
    for k, row in enumerate(rows):
        norm = float(np.linalg.norm(row))
        if norm < INDEPENDENT:
            continue
        rest = row / norm
        for _ in range(2):  # the second time takes away what rounding left the first time
            rest = rest - basis.T @ (basis @ rest)
        if np.linalg.norm(rest) > INDEPENDENT:
            basis = np.vstack([basis, rest / np.linalg.norm(rest)])
            kept.append(k)
    return kept


def _pruned(levels: list[list[Product]], terms: list[list[tuple[int, Product]]]) -> Couplings:
    """Only products that a term is made of, renumbered."""
    used: list[set[int]] = [set() for _ in levels]
    used[0] = set(range(len(levels[0])))
    for length, product in (term for of_degree in terms for term in of_degree):
        if length > 1:
            used[length - 2].add(product.parent)
    for k in range(len(levels) - 2, 0, -1):
        used[k - 1] |= {levels[k][p].parent for p in used[k]}
    number = [{old: new for new, old in enumerate(sorted(of_level))} for of_level in used]

    def renumbered(length: int, product: Product) -> Product:
        return product if length == 1 else product._replace(parent=number[length - 2][product.parent])

    kept = [tuple(renumbered(k + 1, levels[k][old]) for old in sorted(of_level)) for k, of_level in enumerate(used)]
    return Couplings(
        tuple(level for level in kept if level),
        tuple(tuple((length, renumbered(length, p)) for length, p in of_degree) for of_degree in terms),
    )
