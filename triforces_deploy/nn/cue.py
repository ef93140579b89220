"""Products of features by cuEquivariance, from our own tables and in our own layout, so that nothing is converted.

It evaluates any polynomial whose factors are segments of equal length: here each component of a feature is one, of as many
numbers as there are channels. On a GPU one kernel then takes all paths of a product, forward and backward.

Rows are looked up and summed outside, in :mod:`triforces_deploy.nn.message_passing`, which knows of blocks and of other ranks.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from triforces_deploy.nn.couplings import coupling, expanded
from triforces_deploy.nn.equivariant import EdgeProducts, SymmetricContraction

NAME = "cuEquivariance"
PACKAGE, KERNELS = "cuequivariance_torch", "cuequivariance_ops_torch"
PLAIN = "naive"
"""What the library calls its evaluation without kernels, in plain PyTorch, which is slow."""
METHODS = {"cuda": "uniform_1d"}
"""Type of device → what it calls the kernels there."""
NEGLIGIBLE = 1e-12
"""Coefficients of polynomials below it are rounding; all others are of the order of one."""


M = TypeVar("M", bound=nn.Module)
Term = tuple[tuple[int, ...], float]
"""A segment of each factor and of the result, and the coefficient of their product."""


class UnavailableError(Exception):
    """Why the library cannot be used here, in one line."""


def label() -> str:
    """Name and version."""
    return f"{NAME} {version('cuequivariance-torch')}"


def has_kernels(device: torch.device) -> bool:
    """Whether the library was written for such a device."""
    return device.type in METHODS


def with_cuequivariance(model: M, device: torch.device) -> M:
    """A copy of a model on a device, in which the library evaluates all products that it can.

    Raises:
        UnavailableError: the model has no such products, or the library or its kernels for this device are not there.
    """
    places = [name for name, module in model.named_modules() if type(module) in REPLACEMENTS]
    if not places:
        raise UnavailableError(f"{NAME} has no part in this backbone")
    if find_spec(PACKAGE) is None:
        raise UnavailableError(f"{NAME} is not installed")
    if has_kernels(device) and find_spec(KERNELS) is None:
        raise UnavailableError(f"{NAME}'s kernels are not installed: cuequivariance-ops-torch-cu12 or -cu13")
    found = copy.deepcopy(model)
    for name in places:
        own = found.get_submodule(name)
        found.set_submodule(name, REPLACEMENTS[type(own)](own, device))
    return found


class CueEdgeProducts(nn.Module):
    """:class:`EdgeProducts`: w_p · x_l1m1 · Y_l2m2 → m_pm3, one term for each coefficient that is not zero."""

    def __init__(self, own: EdgeProducts, device: torch.device) -> None:
        super().__init__()
        self.own, self.paths = own, own.paths
        self.sizes = [2 * l3 + 1 for _, _, l3 in own.paths]
        counts = (len(own.paths), (own.l_in + 1) ** 2, (own.l_max + 1) ** 2, own.rows)
        self.polynomial = _polynomial(counts, own.channels, {(0, 1, 2, 3): list(self._products())}, device, scalar=2)

    def _products(self) -> Iterator[Term]:
        start = 0
        for p, (l1, l2, l3) in enumerate(self.paths):
            array = coupling(l1, l2, l3)
            for m3, m1, m2 in np.argwhere(array).tolist():
                yield (p, l1**2 + m1, l2**2 + m2, start + m3), float(array[m3, m1, m2])
            start += 2 * l3 + 1

    def forward(self, x: Tensor, harmonics: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        """See :class:`EdgeProducts`."""
        if not x.shape[0]:  # which a kernel need not expect
            return cast(tuple[Tensor, ...], self.own(x, harmonics, weights))
        (product,) = self.polynomial([weights.flatten(1), x.flatten(1), harmonics])
        return tuple(product.unflatten(1, (-1, x.shape[2])).split(self.sizes, dim=1))


class CueContraction(nn.Module):
    """:class:`SymmetricContraction`: w_t · x · … · x → B_Lm, one term for each monomial of each of ours."""

    def __init__(self, own: SymmetricContraction, device: torch.device) -> None:
        super().__init__()
        self.own, self.widest = own, own.widest
        counts = (sum(len(terms) for terms in own.plan.terms), (own.l_max + 1) ** 2, len(own.plan.terms) ** 2)
        operations: dict[tuple[int, ...], list[Term]] = {}
        for segments, coefficient in self._monomials():
            operations.setdefault((0, *[1] * (len(segments) - 2), 2), []).append((segments, coefficient))
        self.polynomial = _polynomial(counts, own.weights[0].shape[2], operations, device)

    def _monomials(self) -> Iterator[Term]:
        terms = ((degree, *term) for degree in range(len(self.own.plan.terms)) for term in expanded(self.own.plan, degree))
        for t, (degree, monomials, coefficients) in enumerate(terms):
            for m, k in np.argwhere(np.abs(coefficients) > NEGLIGIBLE).tolist():
                yield (t, *monomials[:, k].tolist(), degree**2 + m), float(coefficients[m, k])

    def forward(self, x: Tensor, elements: Tensor) -> Tensor:
        """See :class:`SymmetricContraction`."""
        if not x.shape[0]:
            return cast(Tensor, self.own(x, elements))
        weights = torch.cat(list(self.own.weights), dim=1).flatten(1)
        (result,) = self.polynomial([elements @ weights, x.flatten(1)])
        return cast(Tensor, result.unflatten(1, (-1, x.shape[2])))


REPLACEMENTS: dict[type[nn.Module], Any] = {EdgeProducts: CueEdgeProducts, SymmetricContraction: CueContraction}
"""Class of a layer → class that wraps it."""


def _polynomial(
    counts: Sequence[int],
    channels: int,
    operations: Mapping[tuple[int, ...], Sequence[Term]],
    device: torch.device,
    scalar: int | None = None,
) -> nn.Module:
    """The library's module: inputs, (rows, count · channels) each → a list of the one output.

    Args:
        counts: segments of each input and, last, of the output.
        channels: numbers in a segment.
        operations: buffers that a product reads and, last, adds to → its terms.
        device: where it runs.
        scalar: the input whose segments are single numbers, which all channels share.
    """
    import cuequivariance
    from cuequivariance.segmented_polynomials import Path
    from cuequivariance_torch import SegmentedPolynomial

    # Its plain form mentions, for each operation, a package that would make it faster.
    logging.getLogger(PACKAGE).setLevel(logging.ERROR)
    shapes: list[tuple[int, ...]] = [() if k == scalar else (channels,) for k in range(len(counts))]
    operands = [cuequivariance.SegmentedOperand([s] * n, ndim=len(s)) for s, n in zip(shapes, counts, strict=True)]
    products = [
        cuequivariance.SegmentedTensorProduct(
            [(operands[k], "u" * len(shapes[k])) for k in buffers], paths=[Path(*term) for term in terms]
        )
        for buffers, terms in operations.items()
    ]
    steps = list(zip(map(cuequivariance.Operation, operations), products, strict=True))
    polynomial = cuequivariance.SegmentedPolynomial(operands[:-1], operands[-1:], steps)
    method = METHODS.get(device.type, PLAIN)
    module: nn.Module = SegmentedPolynomial(polynomial, method=method).to(device)
    if module.method != method:
        raise UnavailableError(f"{NAME}'s kernels do not load here")
    return module
