"""Layers whose features turn with the structure.

Features of degrees 0 … L are one tensor (N, (L+1)², K): degrees one after another, m = −l … l within each, as in
:mod:`triforces_deploy.nn.spherical`, and K channels. What acts on channels is the same for all m, what acts on m is the same
for all channels. Inversion changes the sign of odd degrees.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from triforces_deploy.nn.couplings import Product, coupling, couplings
from triforces_deploy.nn.small_products import small_product

Array = NDArray[np.float64]


def of_degree(degree: int) -> slice:
    """The components of one degree among all."""
    return slice(degree**2, (degree + 1) ** 2)


def table(array: Array, like: Tensor) -> Tensor:
    """Constants in the type of a tensor. They are no buffers, which a change of precision and back would round."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(dtype=like.dtype, device=like.device)


class DegreeLinear(nn.Module):
    """y_lm = Σ_c x_clm W_cl: a matrix for each degree and, where a degree comes in several copies, for each of them.

    Args:
        copies: how many sets of features of degree 0, 1, … the input has; those of a degree lie one after another.
        n_in: channels of each.
        n_out: channels of the result, which has one set of each degree.
    """

    def __init__(self, copies: Sequence[int], n_in: int, n_out: int) -> None:
        super().__init__()
        self.copies = tuple(copies)
        sizes = [n * (2 * degree + 1) for degree, n in enumerate(self.copies)]
        self.ends = tuple(accumulate(sizes))
        self.weights = nn.ParameterList([torch.randn(n * n_in, n_out) / (n * n_in) ** 0.5 for n in self.copies])

    def forward(self, x: Tensor) -> Tensor:
        """(N, Σ_l copies_l (2l+1), n_in) → (N, (L+1)², n_out)."""
        parts = x.tensor_split(self.ends[:-1], dim=1)
        results = []
        for n, part, weight in zip(self.copies, parts, self.weights, strict=True):
            side_by_side = part if n == 1 else part.unflatten(1, (n, -1)).transpose(1, 2).flatten(2)
            results.append(side_by_side @ weight)
        return torch.cat(results, dim=1)


class ElementLinear(nn.Module):
    """y_lm = x_lm W_l(Z): a matrix for each degree and element."""

    def __init__(self, n_degrees: int, n_elements: int, n_in: int, n_out: int) -> None:
        super().__init__()
        shape = (n_elements, n_in, n_out)
        self.weights = nn.ParameterList([torch.randn(shape) / n_in**0.5 for _ in range(n_degrees)])

    def forward(self, x: Tensor, elements: Tensor) -> Tensor:
        """(N, (L+1)², n_in) and one-hot elements (N, n_elements) → (N, (L+1)², n_out).

        Every element's matrix meets every atom: rows are not sorted by element, whose numbers a compiled form does not know.
        """
        results = []
        for degree, weight in enumerate(self.weights):
            part = x[:, of_degree(degree)]
            first, *rest = (m[:, None, None] * (part @ w) for m, w in zip(elements.unbind(1), weight.unbind(0), strict=True))
            results.append(sum(rest, first))
        return torch.cat(results, dim=1)


class EdgeProducts(nn.Module):
    """Products of a neighbour's features with the harmonics of the edge, one for each path l1 ⊗ l2 → l3.

    m_p = (w_p x_l1 · Y_l2)_l3 with the product of :mod:`triforces_deploy.nn.couplings` and weights of the channels. Paths
    are sorted by l3, then by l1 and l2. With an even sum of degrees only: the others would be pseudovectors and the like.

    Args:
        l_in: highest degree of the features.
        l_max: highest degree of the harmonics and of the result.
        channels: K.
    """

    def __init__(self, l_in: int, l_max: int, channels: int) -> None:
        super().__init__()
        self.l_in, self.l_max, self.channels = l_in, l_max, channels
        paths = [(l1, l2, l3) for l3 in range(l_max + 1) for l1 in range(l_in + 1) for l2 in range(l_max + 1)]
        self.paths = [p for p in paths if abs(p[0] - p[1]) <= p[2] <= p[0] + p[1] and sum(p) % 2 == 0]
        self.copies = [sum(p[2] == degree for p in self.paths) for degree in range(l_max + 1)]
        self.rows = sum(2 * p[2] + 1 for p in self.paths)
        self._sizes = [(2 * l1 + 1) * (2 * l3 + 1) for l1, _, l3 in self.paths]
        self._table = np.concatenate([self._matrix(*p, l_max) for p in self.paths], axis=1)

    @staticmethod
    def _matrix(l1: int, l2: int, l3: int, l_max: int) -> Array:
        """((l_max+1)², (2l3+1)·(2l1+1)): harmonics → the matrix that acts on x_l1."""
        matrix = np.zeros(((l_max + 1) ** 2, 2 * l3 + 1, 2 * l1 + 1))
        matrix[of_degree(l2)] = coupling(l1, l2, l3).transpose(2, 0, 1)
        return matrix.reshape(len(matrix), -1)

    def forward(self, x: Tensor, harmonics: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        """(E, (l_in+1)², K), (E, (l_max+1)²) and (E, paths, K) → for each path (E, 2l3+1, K).

        Weights come first: there are fewer rows of x than of the result.
        """
        results = []
        matrices = (harmonics @ table(self._table, x)).split(self._sizes, dim=1)
        for (l1, _, l3), weight, matrix in zip(self.paths, weights.unbind(1), matrices, strict=True):
            results.append(small_product(matrix.unflatten(1, (2 * l3 + 1, -1)), x[:, of_degree(l1)] * weight[:, None]))
        return tuple(results)


class SymmetricContraction(nn.Module):
    """B_L = Σ_t w_t(Z) p_tL: all equivariant polynomials of an atom's features, with weights by channel and element.

    The last product of each term is taken with the weighted sum of all that it is taken of:

        B_L = w x_L + Σ_{l λ} (u_{lλ} · x_l)_L,    u_{lλ} = Σ_t w_t p_{tλ},

    so that the longest products never exist one by one. Basis and shorter products are those of ``couplings``.

    Args:
        l_max: highest degree of the features.
        l_out: highest degree of the result.
        order: most factors.
        n_elements: see ``elements`` below.
        channels: K.
    """

    def __init__(self, l_max: int, l_out: int, order: int, n_elements: int, channels: int) -> None:
        super().__init__()
        self.plan = couplings(l_max, l_out, order)
        self.l_max = l_max
        self.widest = channels * sum(2 * product.degree + 1 for level in self.plan.levels for product in level)
        sizes = [(n_elements, len(of_result), channels) for of_result in self.plan.terms]
        self.weights = nn.ParameterList([torch.randn(size) / size[1] for size in sizes])

    def forward(self, x: Tensor, elements: Tensor) -> Tensor:
        """(N, (l_max+1)², K) and one-hot elements (N, n_elements) → (N, (l_out+1)², K).

        Inside, components come first and atoms and channels are one long axis: constants then multiply all in one product.
        """
        components = x.transpose(0, 1).flatten(1)
        factors = [components[of_degree(degree)] for degree in range(self.l_max + 1)]
        levels = [factors]
        for products in self.plan.levels[1:]:
            levels.append(_multiplied(levels[-1], products, factors))
        results = [self._summed(degree, levels, elements) for degree in range(len(self.plan.terms))]
        joined: Tensor = torch.cat(results).unflatten(1, (-1, x.shape[2])).transpose(0, 1)
        return joined

    def _summed(self, degree: int, levels: list[list[Tensor]], elements: Tensor) -> Tensor:
        """B_L of one degree, (2L+1, N · K)."""
        weight = self.weights[degree]
        of_atoms = (elements @ weight.flatten(1)).unflatten(1, weight.shape[1:]).transpose(0, 1).flatten(1)
        total: Tensor = of_atoms[0] * levels[0][degree]  # the first term is x_L itself
        last: dict[tuple[int, int], Tensor] = {}
        for w, (length, product) in zip(of_atoms.unbind(0)[1:], self.plan.terms[degree][1:], strict=True):
            shorter = levels[length - 2][product.parent]
            key = product.factor, shorter.shape[0] // 2
            last[key] = last[key] + w * shorter if key in last else w * shorter
        for (factor, shorter_degree), sums in last.items():
            # C meets x first: (2L+1)(2λ+1) rows are fewer than the (2l+1)(2λ+1) of u ⊗ x.
            array = coupling(shorter_degree, factor, degree)
            partial = table(array.reshape(-1, array.shape[2]), sums) @ levels[0][factor]
            total = total + (partial.unflatten(0, (2 * degree + 1, -1)) * sums).sum(1)
        return total


def _multiplied(shorter: list[Tensor], products: Sequence[Product], factors: list[Tensor]) -> list[Tensor]:
    """Each product, (2λ+1, N · K), from those with one factor less; all λ of a pair in one matrix product."""
    results: dict[Product, Tensor] = {}
    for parent, factor in dict.fromkeys((p.parent, p.factor) for p in products):
        wanted = [p for p in products if (p.parent, p.factor) == (parent, factor)]
        outer = (shorter[parent][:, None] * factors[factor]).flatten(0, 1)
        arrays = [coupling(shorter[parent].shape[0] // 2, factor, p.degree) for p in wanted]
        joined = np.concatenate([array.reshape(len(array), -1) for array in arrays])
        results |= zip(wanted, (table(joined, outer) @ outer).split([len(array) for array in arrays]), strict=True)
    return [results[p] for p in products]
