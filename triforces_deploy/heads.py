"""Readouts of the concatenated features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from triforces_deploy.graph import Graph
from triforces_deploy.nn.message_passing import over_atoms
from triforces_deploy.nn.mlp import mlp
from triforces_deploy.nn.scatter import scatter_sum

Readout = Literal["sum", "mean", "total"]


class EnergyHead(nn.Module):
    """A perceptron ε and what of an atom, or of all atoms, it is applied to.

    ===========  ================  =====================================================================
    ``readout``  energy            in molecular dynamics
    ===========  ================  =====================================================================
    'sum'        Σ_i ε(h_i)        extensive, separable, local: the one that artifacts have
    'mean'       N ε(h̄)            extensive; separable only where ε is affine; needs the mean of all atoms
    'total'      ε(h̄)              not extensive: forces in a supercell of n cells are n times too small
    ===========  ================  =====================================================================

    With ``skip`` ε is a perceptron plus a linear function. h̄ is the mean over the owned atoms of a structure. The last two
    are there to be compared with; an atom's energy is then its share to first order, ε(h̄) + ε'(h̄)·(h_i − h̄) for 'mean' and
    1/N of that for 'total', whose sum is exact.
    """

    def __init__(self, width: int, hidden: Sequence[int], readout: Readout = "sum", skip: bool = False) -> None:
        super().__init__()
        self.layers = mlp([width, *hidden, 1])
        self.skip = nn.Linear(width, 1, bias=False) if skip else None
        self.readout, self.widest = readout, max([width, *hidden])
        self.n_features = [width, *hidden][-1] + width * skip + 1

    @property
    def dtype(self) -> torch.dtype:
        """Precision in which the network computes."""
        return next(self.parameters()).dtype

    def forward(self, streams: Sequence[Tensor], graph: Graph) -> Tensor:
        """Features of each stream, (N, width of the stream), → energies of the atoms, (N,), in units of the model's scale."""
        if self.readout == "sum":
            return over_atoms(self._energies, *streams, widest=self.widest)
        mean, n_atoms = mean_over_atoms(torch.cat(list(streams), dim=1), graph)
        energies = self._energies(mean).index_select(0, graph.batch) + self._deviations(streams, mean, graph)
        return energies / n_atoms.index_select(0, graph.batch) if self.readout == "total" else energies

    def features(self, streams: Sequence[Tensor]) -> Tensor:
        """What the linear maps at the end of ε read, and a one for their bias: (N, ``n_features``)."""

        def of_atoms(*features: Tensor) -> Tensor:
            joined = torch.cat(features, dim=1)
            hidden = cast(Tensor, self.layers[:-1](joined))
            read = [hidden] if self.skip is None else [hidden, joined]
            return torch.cat([*read, torch.ones_like(hidden[:, :1])], dim=1)

        return over_atoms(of_atoms, *streams, widest=self.widest)

    def _deviations(self, streams: Sequence[Tensor], mean: Tensor, graph: Graph) -> Tensor:
        """ε'(h̄)·(h_i − h̄), (N,). They add up to zero and so do their derivatives, which are left out."""
        point = mean.detach().requires_grad_(True)
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self._energies(point).sum(), point)
        deviation = torch.cat([t.detach() for t in streams], dim=1) - point.detach().index_select(0, graph.batch)
        return (deviation * slope.index_select(0, graph.batch)).sum(1)

    def _energies(self, *features: Tensor) -> Tensor:
        joined = torch.cat(features, dim=1)
        energies = cast(Tensor, self.layers(joined))
        return (energies if self.skip is None else energies + self.skip(joined)).squeeze(1)


def mean_over_atoms(features: Tensor, graph: Graph) -> tuple[Tensor, Tensor]:
    """Mean over the owned atoms of each structure, (N, width) → (G, width), and their number (G,), at least 1."""
    n_atoms = count_owned(graph)
    owned = graph.owned.to(torch.float64)
    total = scatter_sum(features.to(torch.float64) * owned[:, None], graph.batch, len(n_atoms))
    return (total / n_atoms[:, None]).to(features.dtype), n_atoms.to(features.dtype)


def count_owned(graph: Graph) -> Tensor:
    """Owned atoms of each structure, (G,) float64, at least 1."""
    return scatter_sum(graph.owned.to(torch.float64), graph.batch, graph.composition.shape[0]).clamp(min=1.0)
