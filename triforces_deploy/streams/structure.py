"""The structure stream: the geometry around an atom, blind to the elements.

Power spectrum of a smooth neighbour density (TriForces, eqs. 4-6), then invariant message passing (eq. 15). Two things
differ from the paper on purpose, both for the sake of molecular dynamics: envelopes are polynomials with two continuous
derivatives instead of cosines with one, and messages carry the envelope and are divided by 1 + Σw, so that energy and
forces stay continuous when a neighbour comes or goes.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from triforces_deploy.config import StructureConfig
from triforces_deploy.errors import UserError
from triforces_deploy.exchange import exchange
from triforces_deploy.graph import Graph
from triforces_deploy.nn.mlp import mlp
from triforces_deploy.nn.radial import bessel, lengths, polynomial_envelope
from triforces_deploy.nn.scatter import scatter_sum
from triforces_deploy.nn.spherical import spherical_harmonics

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
        self.project = mlp([n_spectrum] + [config.hidden, width] * BLOCKS)
        self.skip = nn.Linear(n_spectrum, width, bias=False)
        nn.init.orthogonal_(self.skip.weight)
        self.edge_radial = nn.Linear(n_radial, config.n_radial, bias=False)
        self.layers = nn.ModuleList(_MessagePassing(width, config.n_radial) for _ in range(config.layers))
        upper = torch.triu_indices(n_channels, n_channels)
        self.register_buffer("_upper", upper[0] * n_channels + upper[1], persistent=False)

    _upper: Tensor

    def forward(self, graph: Graph) -> Tensor:
        """(N, width)."""
        vector = graph.edge_vector.to(self.mixing.dtype)
        distance = lengths(vector)
        envelopes = [polynomial_envelope(distance, s * self.cutoff, ENVELOPE_POWER) for s in self.config.scales]
        basis = bessel(distance, self.cutoff, self.config.n_radial)
        radial = torch.cat([e[:, None] * basis for e in envelopes], dim=1)  # (E, S·K), scale-major
        angular = spherical_harmonics(vector / distance[:, None], self.config.l_max)  # (E, (l_max+1)²)
        spectrum = self.norm(self._power_spectrum(radial @ self.mixing, angular, graph))
        h = self.project(spectrum) + self.skip(spectrum)
        weight = torch.stack(envelopes).sum(0)[:, None]  # (E, 1)
        edge = self.edge_radial(radial)  # (E, K)
        total = scatter_sum(weight, graph.edge_index[1], graph.numbers.shape[0])  # (N, 1)
        for layer in self.layers:
            h = layer(exchange(h), edge, weight, total, graph)
        return cast(Tensor, h)

    def _power_spectrum(self, radial: Tensor, angular: Tensor, graph: Graph) -> Tensor:
        """c_αlm = Σ_e φ_α Y_lm;  p_αα'l = Σ_m c_αlm c_α'lm: (E, A), (E, (l_max+1)²) → (N, (l_max+1)·A(A+1)/2)."""
        outer = (radial[:, :, None] * angular[:, None, :]).flatten(1)
        density = scatter_sum(outer, graph.edge_index[1], graph.numbers.shape[0])
        density = density.view(-1, radial.shape[1], angular.shape[1])  # (N, A, (l_max+1)²)
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

    def forward(self, h: Tensor, edge: Tensor, weight: Tensor, total: Tensor, graph: Graph) -> Tensor:
        hidden = self.node(h).index_select(0, graph.edge_index[0]) + self.edge(edge)
        summed = scatter_sum(nn.functional.silu(hidden) * weight, graph.edge_index[1], h.shape[0])
        message = nn.functional.linear(summed, self.out.weight) + self.out.bias * total
        return h + message / (1.0 + total)
