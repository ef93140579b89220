"""The structure stream: the geometry around an atom, blind to the elements.

Power spectrum of a smooth neighbour density (TriForces, eqs. 4-6), then invariant message passing (eq. 15). Two things
differ from the paper on purpose, both for the sake of molecular dynamics: envelopes are polynomials with two continuous
derivatives instead of cosines with one, and messages carry the envelope and are divided by 1 + Σw, so that energy and
forces stay continuous when a neighbour comes or goes. The lattice encoding, where it is on, is that of streams/lattice.py,
concatenated with the spectrum before the projection.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from triforces_deploy.config import StructureConfig
from triforces_deploy.errors import UserError
from triforces_deploy.exchange import exchange
from triforces_deploy.graph import Graph
from triforces_deploy.nn.message_passing import Ends, Messages, over_atoms, over_edges
from triforces_deploy.nn.mlp import mlp
from triforces_deploy.nn.radial import bessel, lengths, polynomial_envelope
from triforces_deploy.nn.spherical import spherical_harmonics
from triforces_deploy.streams.lattice import LatticeEncoding

ENVELOPE_POWER = 6
"""p of the polynomial envelope."""
BLOCKS = 3
"""Pairs of linear layers that turn the power spectrum into features."""


class StructureStream(nn.Module):
    """Rotation-invariant features of atoms from edge vectors alone.

    Args:
        config: sizes.
        cutoff: Å; the largest envelope ends here.
    """

    def __init__(self, config: StructureConfig, cutoff: float) -> None:
        super().__init__()
        if not config.scales or max(config.scales) != 1.0 or min(config.scales) <= 0:
            raise UserError(f"model.structure.scales: expected fractions of the cutoff up to 1, got {list(config.scales)}")
        self.config, self.cutoff, self.width = config, cutoff, config.width
        n_radial = len(config.scales) * config.n_radial
        n_channels, width = config.n_channels, config.width
        n_spectrum = (config.l_max + 1) * n_channels * (n_channels + 1) // 2
        self.mixing = nn.Parameter(0.1 * torch.randn(n_radial, n_channels))
        self.norm = nn.LayerNorm(n_spectrum)
        self.lattice = LatticeEncoding(width) if config.lattice else None
        n_inputs = n_spectrum + width * config.lattice
        self.project = mlp([n_inputs] + [config.hidden, width] * BLOCKS)
        self.skip = nn.Linear(n_inputs, width, bias=False)
        nn.init.orthogonal_(self.skip.weight)
        self.edge_radial = nn.Linear(n_radial, config.n_radial, bias=False)
        self.layers = nn.ModuleList(_MessagePassing(width, config.n_radial) for _ in range(config.layers))
        upper = torch.triu_indices(n_channels, n_channels)
        self.register_buffer("_upper", upper[0] * n_channels + upper[1], persistent=False)

    _upper: Tensor

    def forward(self, graph: Graph) -> Tensor:
        """(N, width)."""
        vector = graph.edge_vector.to(self.mixing.dtype)
        n_atoms, widest = graph.numbers.shape[0], self.config.n_channels * (self.config.l_max + 1) ** 2
        m = over_edges(self._describe, graph.edge_index, n_atoms, (vector,), widest=widest)
        edges, (density, total) = m.edges, m.to_centre
        h = over_atoms(self._project, density, *self._lattice(graph), widest=self.config.hidden)
        for k, layer in enumerate(self.layers, start=1):
            h, edges = layer(exchange(h), edges, total, graph, last=k == len(self.layers))
        return h

    def _describe(self, vector: Tensor) -> Messages:
        """Edge vectors (E, 3) → radial features (E, K) and weights w (E, 1), and the terms of the density and of Σw.

        c_αlm = Σ_e φ_α Y_lm, with its (A, (l_max+1)²) components in one row.
        """
        distance = lengths(vector)
        envelopes = [polynomial_envelope(distance, s * self.cutoff, ENVELOPE_POWER) for s in self.config.scales]
        basis = bessel(distance, self.cutoff, self.config.n_radial)
        radial = torch.cat([e[:, None] * basis for e in envelopes], dim=1)  # (E, S·K), scale-major
        angular = spherical_harmonics(vector / distance[:, None], self.config.l_max)  # (E, (l_max+1)²)
        outer = ((radial @ self.mixing)[:, :, None] * angular[:, None, :]).flatten(1)
        weight = torch.stack(envelopes).sum(0)[:, None]
        return Messages((self.edge_radial(radial), weight), to_centre=(outer, weight))

    def _lattice(self, graph: Graph) -> tuple[Tensor, ...]:
        """The encoding of each atom's cell, (N, width), where there is one."""
        if self.lattice is None:
            return ()
        return (self.lattice(graph.cell, graph.composition.sum(1)).index_select(0, graph.batch),)

    def _project(self, density: Tensor, *lattice: Tensor) -> Tensor:
        """Density coefficients (N, A·(l_max+1)²), and the lattice where it is encoded, → features (N, width)."""
        inputs = torch.cat([self.norm(self._power_spectrum(density)), *lattice], dim=1)
        return cast(Tensor, self.project(inputs) + self.skip(inputs))

    def _power_spectrum(self, density: Tensor) -> Tensor:
        """p_αα'l = Σ_m c_αlm c_α'lm: (N, A·(l_max+1)²) → (N, (l_max+1)·A(A+1)/2)."""
        density = density.unflatten(1, (self.config.n_channels, -1))
        blocks = []
        for degree in range(self.config.l_max + 1):
            c = density[:, :, degree**2 : (degree + 1) ** 2]
            blocks.append((c @ c.transpose(1, 2)).flatten(1).index_select(1, self._upper))
        return torch.cat(blocks, dim=1)


class _MessagePassing(nn.Module):
    """h_i ← h_i + Σ_j w_ij MLP([h_j ‖ ρ_ij]) / (1 + Σ_j w_ij).

    The perceptron's first linear map is applied to h before it is gathered and its last one after the sum: the same
    numbers, with the two large products done per atom instead of per edge.
    """

    def __init__(self, width: int, n_radial: int) -> None:
        super().__init__()
        self.node = nn.Linear(width, width)
        self.edge = nn.Linear(n_radial, width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(
        self, h: Tensor, edges: tuple[Tensor, ...], total: Tensor, graph: Graph, last: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """New features, and, but for the last layer, the radial features and weights of the edges as they came.

        The edges' tensors go from layer to layer, so that in blocks the layers' derivatives meet block by block.
        """

        def on_edges(edge: Tensor, weight: Tensor, neighbour: Tensor) -> Messages:
            message = nn.functional.silu(neighbour + self.edge(edge)) * weight
            return Messages(() if last else (edge, weight), to_centre=(message,))

        ends = (Ends(h, at_neighbour=self.node),)
        m = over_edges(on_edges, graph.edge_index, h.shape[0], edges, ends, widest=h.shape[1])
        return over_atoms(self._update, h, *m.to_centre, total, widest=h.shape[1]), m.edges

    def _update(self, h: Tensor, summed: Tensor, total: Tensor) -> Tensor:
        message = nn.functional.linear(summed, self.out.weight) + self.out.bias * total
        return h + message / (1.0 + total)
