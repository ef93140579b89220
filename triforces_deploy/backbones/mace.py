"""MACE: equivariant message passing whose messages are polynomials of the density of neighbours.

Batatia et al., "MACE: higher order equivariant message passing neural networks for fast and accurate force fields" (2022).
Features of an atom are the scalars of all layers side by side, of which the published energies are a linear and, for the
last layer, a nonlinear function: a head with ``head_skip``.

Constants of normalisation are part of the weights here, so that a fresh model starts with values of the order of one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal, cast

import torch
from ase.data import covalent_radii
from torch import Tensor, nn

from triforces_deploy.backbones.base import Backbone
from triforces_deploy.errors import UserError
from triforces_deploy.exchange import exchange
from triforces_deploy.graph import N_NUMBERS, Graph
from triforces_deploy.nn import element_sums
from triforces_deploy.nn.couplings import MOST
from triforces_deploy.nn.equivariant import DegreeLinear, EdgeProducts, ElementLinear, SymmetricContraction
from triforces_deploy.nn.message_passing import Ends, Messages, over_atoms, over_edges
from triforces_deploy.nn.mlp import mlp
from triforces_deploy.nn.radial import lengths, polynomial_envelope
from triforces_deploy.nn.spherical import e3nn_component

Interaction = Literal["plain", "residual", "density", "density-residual"]
OF_SUMS = 10.0
"""By which fresh weights divide a sum over neighbours, so that polynomials of it neither vanish nor explode."""
AGNESI = {"q": 0.9183, "p": 4.5791, "a": 1.0805}
"""Constants of the transform of distances."""


@dataclasses.dataclass(frozen=True)
class MACEConfig:
    """Sizes of MACE; the defaults are those of the published medium models."""

    channels: int = 128
    l_hidden: int = 1
    """Highest degree of the features that layers pass on; the last layer keeps scalars only."""
    l_max: int = 3
    """Highest degree of the harmonics."""
    correlation: tuple[int, ...] = (3, 3)
    """Most factors of the polynomials in each layer; there are as many layers as numbers here."""
    first: Interaction = "residual"
    """Kind of the first layer. 'plain' mixes channels by element before the polynomials, 'residual' adds the atom's own
    features behind them, 'density' divides by a learnt density of neighbours."""
    later: Interaction = "residual"
    """Kind of all other layers."""
    n_bessel: int = 8
    envelope_power: int = 5
    radial_hidden: tuple[int, ...] = (64, 64, 64)
    agnesi: bool = False
    """Whether distances are transformed by the covalent radii of both atoms before the Bessel functions see them."""

    def check(self) -> None:
        """UserError where a size makes no sense."""
        sizes = {"channels": self.channels, "n_bessel": self.n_bessel, "envelope_power": self.envelope_power}
        sizes |= {"radial_hidden": min(self.radial_hidden, default=1)}
        for name, size in sizes.items():
            if size < 1:
                raise UserError(f"mace: {name} must be at least 1, got {size}")
        if not self.correlation or not all(order in MOST for order in self.correlation):
            raise UserError(
                f"mace: correlation must be numbers from 1 to {max(MOST)}, one for each layer; got {self.correlation}"
            )
        most = min(MOST[order] for order in self.correlation)
        if not 0 <= self.l_hidden <= self.l_max <= most:
            raise UserError(
                f"mace: 0 ≤ l_hidden ≤ l_max ≤ {most} is needed, got l_hidden {self.l_hidden} and l_max {self.l_max}"
            )


class MACE(Backbone):
    """Layers of messages and polynomials; see :class:`Layer`.

    Everything is computed in the network's precision, edges too.
    """

    Config: ClassVar[Any] = MACEConfig

    smooth = True
    conservative = True
    separable = True
    bidirectional = False

    def __init__(self, config: MACEConfig, cutoff: float, numbers: Sequence[int]) -> None:
        super().__init__()
        config.check()
        self.config, self.cutoff = config, cutoff
        n_layers = len(config.correlation)
        self.width = n_layers * config.channels
        # The first layer reads what ghosts know by themselves: their element.
        self.n_exchanges = n_layers - 1
        self.receptive_field = n_layers * cutoff
        self.register_buffer("numbers", torch.tensor(list(numbers), dtype=torch.int64), persistent=False)
        self.register_buffer("wave_numbers", torch.arange(1, config.n_bessel + 1) * (math.pi / cutoff))
        if config.agnesi:
            self.register_buffer("radii", torch.tensor([float(r) for r in covalent_radii[:N_NUMBERS]]))
            for name, value in AGNESI.items():
                self.register_buffer(f"agnesi_{name}", torch.tensor(value))
        self.embedding = nn.Parameter(torch.randn(len(numbers), config.channels))
        self.layers = nn.ModuleList([Layer(config, k, len(numbers)) for k in range(n_layers)])

    numbers: Tensor
    """(n_elements,) int64. Atomic numbers, in the order of the weights that depend on the element."""
    wave_numbers: Tensor
    """(n_bessel,) 1/Å. kπ/rc; stored, because imported models have them rounded to float32."""
    radii: Tensor
    """(119,) Å. Covalent radii."""
    agnesi_q: Tensor
    """() A constant of the transform, and so are p and a."""
    agnesi_p: Tensor
    agnesi_a: Tensor

    def forward(self, graph: Graph) -> Tensor:
        """Compute the scalars of all layers, (N, layers · channels), in the type of the parameters."""
        elements = (graph.numbers[:, None] == self.numbers).to(self.embedding.dtype)
        nodes = elements @ self.embedding
        edges: tuple[Tensor, ...] = (graph.edge_vector.to(self.embedding.dtype),)
        scalars = []
        for k, layer in enumerate(self.layers):
            nodes, edges = self._pass(k, cast(Layer, layer), nodes, edges, elements, graph)
            scalars.append(nodes[:, : self.config.channels])
        return torch.cat(scalars, dim=1)

    def _pass(
        self, k: int, layer: Layer, nodes: Tensor, edges: tuple[Tensor, ...], elements: Tensor, graph: Graph
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One layer: new features, flat, and for the next layer the radial functions and harmonics of the edges.

        The first layer makes those itself: in blocks, they then never exist all at once.
        """
        if k:
            ends = [Ends(exchange(over_atoms(layer.send, nodes)), at_neighbour=_as_they_are)]
        else:
            ends = [Ends(elements if layer.by_elements else over_atoms(layer.send, nodes), at_neighbour=_as_they_are)]
        if k == 0 and self.config.agnesi:
            ends.append(Ends(self.radii.index_select(0, graph.numbers)[:, None], _as_they_are, _as_they_are))

        def on_edges(*tensors: Tensor) -> Messages:
            radial, harmonics, received = (*self.encode(tensors[0], *tensors[2:]), tensors[1]) if k == 0 else tensors
            keep = (radial, harmonics) if k + 1 < len(self.layers) else ()
            return Messages(keep, layer.messages(radial, harmonics, received))

        update = partial(layer.update, layer.send(self.embedding) if layer.by_elements else None)
        m = over_edges(on_edges, graph.edge_index, nodes.shape[0], edges, ends, layer.widest)
        return over_atoms(update, nodes, elements, *m.to_centre, widest=layer.polynomials.widest), m.edges

    def encode(self, vectors: Tensor, *radii: Tensor) -> tuple[Tensor, Tensor]:
        """Radial functions × envelope, (E, n_bessel), and harmonics, (E, (l_max+1)²), of edge vectors (E, 3).

        With the transform, also given the radii of centre and neighbour, (E, 1) each:

            sin(k π x/rc) / x,    1/x = 1 + a s^q / (1 + s^(q−p)),    s = r / mean radius.
        """
        r = lengths(vectors)
        x = r[:, None]
        if radii:
            q, p, a = self.agnesi_q, self.agnesi_p, self.agnesi_a
            s = 2.0 * x / (radii[0] + radii[1])
            x = 1.0 / (1.0 + a * s**q / (1.0 + s ** (q - p)))
        envelope = polynomial_envelope(r, self.cutoff, self.config.envelope_power)[:, None]
        # The harmonics are those of the vector from the neighbour to the centre.
        return envelope * torch.sin(x * self.wave_numbers) / x, e3nn_component(-vectors / r[:, None], self.config.l_max)


class Layer(nn.Module):
    """Messages, polynomials of their sums, and what is kept of the atom's own features.

    With features h of the atoms, harmonics Y of the edges and R a perceptron of the radial functions:

        A_i = linear Σ_j R(r_ij) (linear h_j · Y(r_ij)),    h_i ← linear B(A_i, Z_i) + skip(h_i, Z_i)

    with B of :class:`~triforces_deploy.nn.equivariant.SymmetricContraction`. A layer that is not residual has, in place of
    the skip, a linear map of A by element; one with a density divides A by 1 + Σ_j tanh(d(r_ij)²), d linear.
    """

    def __init__(self, config: MACEConfig, k: int, n_elements: int) -> None:
        super().__init__()
        kind = config.later if k else config.first
        width = self.channels = config.channels
        l_in = config.l_hidden if k else 0
        l_out = 0 if k == len(config.correlation) - 1 else config.l_hidden
        self.products = EdgeProducts(l_in, config.l_max, width)
        n_hidden = [config.n_bessel, *config.radial_hidden][-1]
        self.by_elements = k == 0 and element_sums.pays(n_elements, n_hidden, width)
        self.widest = (config.l_max + 1) ** 2 * n_elements * n_hidden if self.by_elements else self.products.rows * width
        self.linear_in = DegreeLinear([1] * (l_in + 1), width, width)
        self.radial = mlp([config.n_bessel, *config.radial_hidden, len(self.products.paths) * width], bias=False)
        self.linear_sum = DegreeLinear(self.products.copies, width, width)
        dense = kind.startswith("density")
        self.density = nn.Linear(config.n_bessel, 1, bias=False) if dense else None
        residual = kind.endswith("residual")
        self.skip = ElementLinear(min(l_in, l_out) + 1, n_elements, width, width) if residual else None
        self.by_element = None if residual else ElementLinear(config.l_max + 1, n_elements, width, width)
        self.polynomials = SymmetricContraction(config.l_max, l_out, config.correlation[k], n_elements, width)
        self.linear_out = DegreeLinear([1] * (l_out + 1), width, width)
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        """Fresh weights under which everything stays of the order of one."""
        for linear in (module for module in self.radial if isinstance(module, nn.Linear)):
            nn.init.normal_(linear.weight, std=1.7 / linear.in_features**0.5)
        for weight in self.linear_sum.weights:
            weight /= OF_SUMS

    def send(self, nodes: Tensor) -> Tensor:
        """What neighbours read of an atom; features as they are passed on are flat, (N, (L+1)² · channels)."""
        return cast(Tensor, self.linear_in(self._unflat(nodes))).flatten(1)

    def messages(self, radial: Tensor, harmonics: Tensor, received: Tensor) -> tuple[Tensor, ...]:
        """What the edges add to their centres: for each path (E, 2l3+1, channels) and, with a density, (E, 1).

        In a first layer of few elements, what :mod:`triforces_deploy.nn.element_sums` makes of their one-hot vectors, received
        in place of features.
        """
        messages: tuple[Tensor, ...]
        if self.by_elements:
            messages = (element_sums.terms(harmonics, self.radial[:-1](radial), received),)
        else:
            messages = self.products(self._unflat(received), harmonics, self._unflat(self.radial(radial)))
        return messages if self.density is None else (*messages, torch.tanh(self.density(radial).square()))

    def update(self, of_elements: Tensor | None, nodes: Tensor, elements: Tensor, *sums: Tensor) -> Tensor:
        """New features of atoms, flat, from old ones and what their edges added, sums by element where elements have sent."""
        if of_elements is None:
            messages = sums[: len(self.products.paths)]
        else:
            messages = element_sums.mixed(sums[0], of_elements, cast(nn.Linear, self.radial[-1]).weight)
        a: Tensor = self.linear_sum(torch.cat(messages, dim=1))
        if self.density is not None:
            a = a / (1.0 + sums[-1][:, None])
        if self.by_element is not None:
            a = self.by_element(a, elements)
        new: Tensor = self.linear_out(self.polynomials(a, elements))
        if self.skip is not None:
            shared = len(self.skip.weights) ** 2
            old = self.skip(self._unflat(nodes)[:, :shared], elements)
            new = torch.cat([new[:, :shared] + old, new[:, shared:]], dim=1)
        flat: Tensor = new.flatten(1)
        return flat

    def _unflat(self, x: Tensor) -> Tensor:
        wide: Tensor = x.unflatten(1, (-1, self.channels))
        return wide


def _as_they_are(rows: Tensor) -> Tensor:
    return rows
