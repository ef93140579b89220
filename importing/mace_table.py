"""The one table of a public MACE model's parameters and ours; both sides are checked to be in it completely.

The public code multiplies by constants of normalisation at every evaluation. Here they are part of the weights.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from triforces_deploy.errors import UserError
from triforces_deploy.nn.couplings import N_POINTS, values_of_terms
from triforces_deploy.nn.equivariant import EdgeProducts

from .foreign import StandIn
from .mace_facts import Facts, silu_scale, tensor

EQUAL = 1e-5
"""Relative difference of a public polynomial from the nearest combination of ours, beyond which it is not one.

Files from training in float32 hold their tables rounded to it."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A tensor of ours that is a piece of theirs, as it lies there in one go."""

    ours: str
    theirs: str
    shape: tuple[int, ...]
    """Of the piece."""
    factor: float = 1.0
    start: int = 0
    """Where in the flattened tensor the piece begins."""
    swap: tuple[int, int] = (0, 0)
    """Axes of the piece that change places in ours."""
    by_element: bool = False
    """Whether the first axis of ours runs over elements."""

    def read(self, model: StandIn, name: str) -> Tensor:
        """Ours from theirs, float64."""
        flat = tensor(model, self.theirs, name).to(torch.float64).flatten()
        size = math.prod(self.shape)
        if self.start + size > flat.numel():
            raise UserError(f"{name}: {self.theirs} is smaller than the sizes of the model ask for; the file is damaged")
        piece = flat[self.start : self.start + size].reshape(self.shape)
        return (piece.transpose(*self.swap) * self.factor).contiguous()


@dataclasses.dataclass(frozen=True)
class Polynomials:
    """Weights of a symmetric contraction, whose polynomials are others than ours and span no more than them."""

    ours: str
    theirs: str
    """Prefix of ``weights_max``, ``weights.k`` and ``U_matrix_n``."""
    l_max: int
    degree: int
    order: int
    by_element: bool = True

    def parameters(self) -> list[str]:
        """Their weights, by rising number of factors."""
        lower = [f"{self.theirs}weights.{k}" for k in reversed(range(self.order - 1))]
        return [*lower, f"{self.theirs}weights_max"]

    def read(self, model: StandIn, name: str) -> Tensor:
        """(n_elements, n_terms, channels) float64: w' = S w, where each of their polynomials is p_k = Σ_t S_tk p'_t."""
        points = np.random.default_rng(1).normal(size=(N_POINTS, (self.l_max + 1) ** 2))
        ours = values_of_terms(points, self.l_max, self.degree, self.order)
        blocks = []
        for length, parameter in enumerate(self.parameters(), start=1):
            table = tensor(model, f"{self.theirs}U_matrix_{length}", name).to(torch.float64).numpy()
            theirs = table.reshape(2 * self.degree + 1, *[points.shape[1]] * length, -1)[self.degree]
            found = np.einsum("si,i...->s...", points, theirs)
            for _ in range(length - 1):
                found = np.einsum("si,si...->s...", points, found)
            basis = ours.get(length, np.zeros((N_POINTS, 0)))
            mixing, *_ = np.linalg.lstsq(basis, found, rcond=None)
            if np.abs(basis @ mixing - found).max() > EQUAL * max(np.abs(found).max(), 1.0):
                raise UserError(f"{name}: {self.theirs}U_matrix_{length} holds what is no polynomial of degree {self.degree}")
            weights = tensor(model, parameter, name).to(torch.float64)
            blocks.append(torch.einsum("tk,ekc->etc", torch.from_numpy(mixing), weights))
        return torch.cat(blocks, dim=1)


def rows(facts: Facts, model: StandIn, name: str) -> Iterator[Row | Polynomials]:
    """The backbone's tensors; heads and references are put together in mace.py."""
    width, n_elements = facts.config.channels, len(facts.numbers)
    radial = "radial_embedding."
    yield Row("embedding", "node_embedding.linear.weight", (n_elements, width), n_elements**-0.5, by_element=True)
    yield Row("wave_numbers", f"{radial}bessel_fn.bessel_weights", (facts.config.n_bessel,))
    if facts.config.agnesi:
        yield Row("radii", f"{radial}distance_transform.covalent_radii", (119,))
        for constant in "qpa":
            yield Row(f"agnesi_{constant}", f"{radial}distance_transform.{constant}", ())
    for k in range(len(facts.config.correlation)):
        yield from _layer(k, facts, model, name)


def _layer(k: int, facts: Facts, model: StandIn, name: str) -> Iterator[Row | Polynomials]:
    config, n_elements = facts.config, len(facts.numbers)
    width = config.channels
    ours, theirs, product = f"layers.{k}.", f"interactions.{k}.", f"products.{k}."
    l_in = config.l_hidden if k else 0
    l_out = 0 if k == len(config.correlation) - 1 else config.l_hidden
    kind = config.later if k else config.first
    prefactor = float(tensor(model, "radial_embedding.bessel_fn.prefactor", name))
    copies = EdgeProducts(l_in, config.l_max, config.channels).copies
    yield from _linear(f"{ours}linear_in", f"{theirs}linear_up.weight", [1] * (l_in + 1), width)
    yield from _radial(k, facts, model, name, prefactor, sum(copies) * width)
    yield from _linear(f"{ours}linear_sum", f"{theirs}linear.weight", copies, width, 1.0 / facts.neighbours[k])
    if kind.startswith("density"):
        shape, factor = (config.n_bessel, 1), prefactor * config.n_bessel**-0.5
        yield Row(f"{ours}density.weight", f"{theirs}density_fn.layer0.weight", shape, factor, swap=(0, 1))
    residual = kind.endswith("residual")
    n_degrees = min(l_in, l_out) + 1 if residual else config.l_max + 1
    for degree in range(n_degrees):
        name_of = f"{ours}{'skip' if residual else 'by_element'}.weights.{degree}"
        cube, factor = (width, n_elements, width), (width * n_elements) ** -0.5
        start = degree * math.prod(cube)
        yield Row(name_of, f"{theirs}skip_tp.weight", cube, factor, start, swap=(0, 1), by_element=True)
    for degree in range(l_out + 1):
        contraction = f"{product}symmetric_contractions.contractions.{degree}."
        weights = f"{ours}polynomials.weights.{degree}"
        yield Polynomials(weights, contraction, config.l_max, degree, config.correlation[k])
    yield from _linear(f"{ours}linear_out", f"{product}linear.weight", [1] * (l_out + 1), width)


def _linear(ours: str, theirs: str, copies: list[int], width: int, factor: float = 1.0) -> Iterator[Row]:
    """A matrix for each degree, one behind the other."""
    start = 0
    for degree, n in enumerate(copies):
        shape = (n * width, width)
        yield Row(f"{ours}.weights.{degree}", theirs, shape, factor * (n * width) ** -0.5, start)
        start += math.prod(shape)


def _radial(k: int, facts: Facts, model: StandIn, name: str, prefactor: float, n_out: int) -> Iterator[Row]:
    """The perceptron of the radial functions: activations are normalised behind SiLU, weights by the number of inputs."""
    sizes = [facts.config.n_bessel, *facts.config.radial_hidden, n_out]
    before = prefactor
    for j in range(len(sizes) - 1):
        theirs = f"interactions.{k}.conv_tp_weights.layer{j}"
        shape = (sizes[j], sizes[j + 1])
        yield Row(f"layers.{k}.radial.{2 * j}.weight", f"{theirs}.weight", shape, before * sizes[j] ** -0.5, swap=(0, 1))
        if j < len(sizes) - 2:
            before = silu_scale(model.get(f"{theirs}.act"), name)


def refuse_leftovers(model: StandIn, used: set[str], name: str) -> None:
    """UserError for a parameter of theirs that no row reads: it does something that nothing here does."""
    for parameter, values in model.tensors("_parameters"):
        if values.numel() and parameter not in used:
            raise UserError(f"{name} has the parameter {parameter}, which has no counterpart here: not represented")


def names_read(row: Row | Polynomials) -> set[str]:
    """Parameters of theirs that a row reads."""
    return set(row.parameters()) if isinstance(row, Polynomials) else {row.theirs}


def check_complete(ours: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """A table that leaves out a tensor of ours is wrong itself."""
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in expected.items()}, sorted(set(ours) ^ set(expected))
