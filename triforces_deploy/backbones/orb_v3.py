"""Orb-v3: an unconstrained attention graph network, smooth and without a neighbour cap.

Rhodes et al., "Orb-v3: atomistic simulation at scale" (2025). It is not built to be equivariant: rotations are learnt.
Features of the atoms are the last node states; the released mean-pooled energy head is not part of a backbone.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from triforces_deploy.backbones.base import Backbone
from triforces_deploy.errors import UserError
from triforces_deploy.exchange import exchange
from triforces_deploy.graph import N_NUMBERS, Graph
from triforces_deploy.nn.mlp import mlp
from triforces_deploy.nn.radial import bessel, lengths, polynomial_envelope
from triforces_deploy.nn.scatter import scatter_sum
from triforces_deploy.nn.spherical import L_MAX, e3nn_component

ENVELOPE_POWER = 4
NORM_EPS = 2.0**-23
"""Of every norm, in every precision: what float32, in which the public weights were trained, takes by default."""


@dataclasses.dataclass(frozen=True)
class OrbV3Config:
    """Sizes of Orb-v3; the defaults are those of the released models."""

    latent: int = 256
    """Width of node and edge states."""
    n_layers: int = 5
    mlp_hidden: int = 1024
    mlp_depth: int = 2
    """Hidden layers of each perceptron."""
    n_bessel: int = 8
    l_max: int = 3

    def check(self) -> None:
        """UserError where a size makes no sense."""
        for name, size in dataclasses.asdict(self).items():
            least = 0 if name == "l_max" else 1
            if size < least:
                raise UserError(f"orb_v3: {name} must be at least {least}, got {size}")
        if self.l_max > L_MAX:
            raise UserError(f"orb_v3: l_max can be at most {L_MAX}, got {self.l_max}")


class OrbV3(Backbone):
    """The trunk of Orb-v3.

    An edge points from its centre (Orb's sender) to its neighbour (Orb's receiver), as ``edge_vector`` does. Distances
    and harmonics too are computed in the network's precision: in float32, float64 there did not improve the forces.
    """

    Config: ClassVar[Any] = OrbV3Config

    smooth = True
    conservative = True
    separable = True
    bidirectional = True

    def __init__(self, config: OrbV3Config, cutoff: float) -> None:
        super().__init__()
        config.check()
        self.config = config
        self.cutoff = cutoff
        self.width = config.latent
        # The first layer reads what ghosts know by themselves: their element.
        self.n_exchanges = config.n_layers - 1
        self.receptive_field = config.n_layers * cutoff
        n_edge_inputs = config.n_bessel * (config.l_max + 1) ** 2
        self.embedding = nn.Embedding(N_NUMBERS, config.latent)
        nn.init.uniform_(self.embedding.weight, -(3.0**0.5), 3.0**0.5)  # unit variance
        self.node_encoder = NormedMLP(config.latent, config)
        self.edge_encoder = NormedMLP(n_edge_inputs, config)
        self.layers = nn.ModuleList([Interaction(config) for _ in range(config.n_layers)])

    def forward(self, graph: Graph) -> Tensor:
        """Compute the final node states, (N, latent), in the type of the parameters."""
        neighbour, centre = graph.edge_index.unbind(0)
        inputs, envelope = self.edge_inputs(graph.edge_vector.to(self.embedding.weight.dtype))
        nodes = self.node_encoder(self.embedding(graph.numbers))
        edges = self.edge_encoder(inputs)
        for k, layer in enumerate(self.layers):
            if k > 0:
                nodes = exchange(nodes)
            nodes, messages = layer(nodes, edges, envelope, neighbour, centre)
            edges = edges + messages
        return cast(Tensor, nodes)

    def edge_inputs(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Bessel functions ⊗ spherical harmonics × envelope, (E, n_bessel·(l_max+1)²), and the envelope, (E, 1)."""
        r = lengths(vectors)
        envelope = polynomial_envelope(r, self.cutoff, ENVELOPE_POWER)[:, None]
        radial = envelope * bessel(r, self.cutoff, self.config.n_bessel)
        angular = e3nn_component(vectors / r[:, None], self.config.l_max)
        return (radial[:, :, None] * angular[:, None, :]).flatten(1), envelope


class NormedMLP(nn.Module):
    """A perceptron followed by a root-mean-square norm: n_inputs → mlp_hidden (mlp_depth times) → latent."""

    def __init__(self, n_inputs: int, config: OrbV3Config) -> None:
        super().__init__()
        self.mlp = mlp([n_inputs, *[config.mlp_hidden] * config.mlp_depth, config.latent])
        self.norm = nn.RMSNorm(config.latent, eps=NORM_EPS)

    def forward(self, inputs: Tensor) -> Tensor:
        """(K, n_inputs) → (K, latent)."""
        return cast(Tensor, self.norm(self.mlp(inputs)))


class Interaction(nn.Module):
    """One layer: messages on the edges, gated sums of them at both ends, residual updates of nodes and edges.

    With node states n, edge states e, centre i and neighbour j:

        m_e = MLP[e ‖ n_i ‖ n_j],    n ← n + MLP[n ‖ Σ_in g_in m ‖ Σ_out g_out m],    g = u(r) σ(linear(e)),

    where the first sum runs over the edges that end at the atom, the second over those that start there, and u is the
    envelope. The caller adds m to e.
    """

    def __init__(self, config: OrbV3Config) -> None:
        super().__init__()
        self.gates = nn.Linear(config.latent, 2)
        self.edge_mlp = NormedMLP(3 * config.latent, config)
        self.node_mlp = NormedMLP(3 * config.latent, config)

    def forward(
        self, nodes: Tensor, edges: Tensor, envelope: Tensor, neighbour: Tensor, centre: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(N, latent), (E, latent), (E, 1), (E,), (E,) → new node states (N, latent) and messages (E, latent)."""
        gate_in, gate_out = (envelope * torch.sigmoid(self.gates(edges))).chunk(2, dim=1)
        messages = self._messages(nodes, edges, neighbour, centre)
        incoming = scatter_sum(gate_in * messages, neighbour, nodes.shape[0])
        outgoing = scatter_sum(gate_out * messages, centre, nodes.shape[0])
        return nodes + self.node_mlp(torch.cat([nodes, incoming, outgoing], dim=1)), messages

    def _messages(self, nodes: Tensor, edges: Tensor, neighbour: Tensor, centre: Tensor) -> Tensor:
        """``edge_mlp`` of [e ‖ n_centre ‖ n_neighbour], its first layer taken apart.

        Two thirds of that layer depend on one atom each: multiplied per atom and then gathered, they cost as much as
        there are atoms, not edges, and the wide concatenation never exists.
        """
        first, *rest = self.edge_mlp.mlp
        of_edge, of_centre, of_neighbour = cast(nn.Linear, first).weight.chunk(3, dim=1)
        at_centre = functional.linear(nodes, of_centre, cast(nn.Linear, first).bias)
        at_neighbour = functional.linear(nodes, of_neighbour)
        hidden = functional.linear(edges, of_edge)
        hidden = hidden + at_centre.index_select(0, centre) + at_neighbour.index_select(0, neighbour)
        for module in rest:
            hidden = module(hidden)
        return cast(Tensor, self.edge_mlp.norm(hidden))
