"""Orb-v3: an unconstrained attention graph network, smooth and without a neighbour cap.

Rhodes et al., "Orb-v3: atomistic simulation at scale" (2025). It is not built to be equivariant: rotations are learnt.
Features of the atoms are the last node states; the released heads are ``model.readout: mean`` and ``model.direct``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from triforces_deploy.backbones.base import Backbone
from triforces_deploy.errors import UserError
from triforces_deploy.exchange import exchange
from triforces_deploy.graph import N_NUMBERS, Graph
from triforces_deploy.nn.linear import linear
from triforces_deploy.nn.message_passing import Ends, Messages, over_atoms, over_edges
from triforces_deploy.nn.mlp import mlp
from triforces_deploy.nn.radial import bessel, lengths, polynomial_envelope
from triforces_deploy.nn.spherical import L_MAX, e3nn_component
from triforces_deploy.nn.system_embedding import MOST, NumberEmbedding

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
    system: Literal["none", "waves"] = "none"
    """Whether the layers are told charge and spin of the structure, as sines and cosines: so were the models of molecules."""
    charge: int = 0
    """e, of every structure; part of the model."""
    spin: int = 0
    """Multiplicity of every structure; 0 where it is unknown."""

    def check(self) -> None:
        """UserError where a size makes no sense."""
        for name in ("latent", "n_layers", "mlp_hidden", "mlp_depth", "n_bessel", "l_max"):
            size, least = dataclasses.asdict(self)[name], 0 if name == "l_max" else 1
            if size < least:
                raise UserError(f"orb_v3: {name} must be at least {least}, got {size}")
        if self.system == "none" and (self.charge or self.spin):
            raise UserError("orb_v3: with system: none the model knows no charge and no spin; leave both out")
        if self.system == "waves" and self.latent % 4:
            raise UserError(f"orb_v3: with system: waves latent must be a multiple of 4, got {self.latent}")
        if abs(self.charge) > MOST or not 0 <= self.spin <= MOST:
            raise UserError(f"orb_v3: charge must be from -{MOST} to {MOST} and spin from 0 to {MOST}")
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
    directions = "features"

    def __init__(self, config: OrbV3Config, cutoff: float, _numbers: Sequence[int] = ()) -> None:
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
        self.system = System(config) if config.system == "waves" else None
        self.layers = nn.ModuleList([Interaction(config) for _ in range(config.n_layers)])

    def forward(self, graph: Graph) -> Tensor:
        """Compute the final node states, (N, latent), in the type of the parameters."""
        nodes = over_atoms(self.node_encoder, self.embedding(graph.numbers), widest=self.config.mlp_hidden)
        edges: tuple[Tensor, ...] = (graph.edge_vector.to(self.embedding.weight.dtype),)
        for k, layer in enumerate(self.layers):
            if k > 0:
                nodes = exchange(nodes)
            if self.system is not None:
                nodes = nodes + self.system(k)
            nodes, edges = self._interact(k, cast(Interaction, layer), nodes, edges, graph.edge_index)
        return nodes

    def _interact(
        self, k: int, layer: Interaction, nodes: Tensor, edges: tuple[Tensor, ...], edge_index: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One layer: new node states and, but for the last layer, edge states and envelopes.

        The first layer encodes the edges itself: in blocks, their first states then never exist all at once.
        """
        last = k == self.config.n_layers - 1

        def on_edges(*tensors: Tensor) -> Messages:
            *of_edge, at_centre, at_neighbour = tensors
            states, envelope = self.encode_edges(*of_edge) if k == 0 else of_edge
            messages, incoming, outgoing = layer.messages(states, envelope, at_centre, at_neighbour)
            return Messages(() if last else (states + messages, envelope), (outgoing,), (incoming,))

        ends = (Ends(nodes, layer.at_centre, layer.at_neighbour),)
        m = over_edges(on_edges, edge_index, nodes.shape[0], edges, ends, widest=self.config.mlp_hidden)
        return over_atoms(layer.update, nodes, *m.to_neighbour, *m.to_centre, widest=self.config.mlp_hidden), m.edges

    def encode_edges(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """First states of the edges, (E, latent), and envelopes, (E, 1), from edge vectors (E, 3)."""
        inputs, envelope = self.edge_inputs(vectors)
        return self.edge_encoder(inputs), envelope

    def edge_inputs(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Bessel functions ⊗ spherical harmonics × envelope, (E, n_bessel·(l_max+1)²), and the envelope, (E, 1)."""
        r = lengths(vectors)
        envelope = polynomial_envelope(r, self.cutoff, ENVELOPE_POWER)[:, None]
        radial = envelope * bessel(r, self.cutoff, self.config.n_bessel)
        angular = e3nn_component(vectors / r[:, None], self.config.l_max)
        return (radial[:, :, None] * angular[:, None, :]).flatten(1), envelope


class System(nn.Module):
    """What each layer adds to the node states of all atoms: a linear function of [charge ‖ spin] as waves."""

    def __init__(self, config: OrbV3Config) -> None:
        super().__init__()
        half = config.latent // 2
        self.charge = NumberEmbedding("waves", config.charge, -MOST, None, half)
        self.spin = NumberEmbedding("waves", config.spin, 0, 0, half)
        self.layers = nn.ModuleList([nn.Linear(2 * half, config.latent) for _ in range(config.n_layers)])

    def forward(self, k: int) -> Tensor:
        """(latent,), of layer ``k``."""
        return cast(Tensor, self.layers[k](torch.cat([self.charge(), self.spin()])))


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

    def at_centre(self, nodes: Tensor) -> Tensor:
        """What atoms add to the first layer of the edge perceptron as centres, (N, latent) → (N, mlp_hidden).

        Two thirds of that layer depend on one atom each: multiplied per atom and then looked up, they cost as much as
        there are atoms, not edges, and the wide concatenation never exists.
        """
        return linear(nodes, self._first_weights()[1], cast(nn.Linear, self.edge_mlp.mlp[0]).bias)

    def at_neighbour(self, nodes: Tensor) -> Tensor:
        """The same as neighbours."""
        return linear(nodes, self._first_weights()[2])

    def _first_weights(self) -> tuple[Tensor, ...]:
        """Of the edge perceptron's first layer, (mlp_hidden, latent) each: for the edge, its centre and its neighbour."""
        return cast(nn.Linear, self.edge_mlp.mlp[0]).weight.chunk(3, dim=1)

    def messages(
        self, edges: Tensor, envelope: Tensor, at_centre: Tensor, at_neighbour: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(E, latent), (E, 1), twice (E, mlp_hidden) → m, g_in m and g_out m, (E, latent) each."""
        gate_in, gate_out = (envelope * torch.sigmoid(self.gates(edges))).chunk(2, dim=1)
        hidden = linear(edges, self._first_weights()[0]) + at_centre + at_neighbour
        for module in list(self.edge_mlp.mlp)[1:]:
            hidden = module(hidden)
        messages = cast(Tensor, self.edge_mlp.norm(hidden))
        return messages, gate_in * messages, gate_out * messages

    def update(self, nodes: Tensor, incoming: Tensor, outgoing: Tensor) -> Tensor:
        """New node states from old ones and both sums of messages, (N, latent) each."""
        return nodes + cast(Tensor, self.node_mlp(torch.cat([nodes, incoming, outgoing], dim=1)))
