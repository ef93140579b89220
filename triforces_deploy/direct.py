"""Forces and stress that are read off the features instead of being derivatives of the energy.

In training they spare the second derivative, and they are not conservative: molecular dynamics with them gains or loses energy.
Such models are pretrained and compared with; export refuses them. A potential differentiates the energy all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from triforces_deploy.graph import Graph
from triforces_deploy.heads import mean_over_atoms
from triforces_deploy.nn.message_passing import over_atoms
from triforces_deploy.nn.mlp import mlp

VOIGT = ((0, 5, 4), (5, 1, 3), (4, 3, 2))
"""Where each component of a symmetric matrix stands among xx, yy, zz, yz, xz, xy."""
_H = 0.75**0.5
DEGREE_2 = (
    ((0.0, 0.0, _H), (0.0, 0.0, 0.0), (_H, 0.0, 0.0)),
    ((0.0, _H, 0.0), (_H, 0.0, 0.0), (0.0, 0.0, 0.0)),
    ((-0.5, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, -0.5)),
    ((0.0, 0.0, 0.0), (0.0, 0.0, _H), (0.0, _H, 0.0)),
    ((-_H, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, _H)),
)
"""Matrices B with harmonics of degree 2 = rᵀ B r, in the order of ``nn.spherical.e3nn_component``."""


class Direct(NamedTuple):
    """What is read off; float64."""

    forces: Tensor
    """(N, 3) eV/Å."""
    stress: Tensor
    """(G, 3, 3) eV/Å³, symmetric, in ASE's sign; NaN where there is no head for it."""


class DirectHeads(nn.Module):
    """Heads of the concatenated features h, of widths that add up to ``width``.

    Where the features know directions themselves, with perceptrons φ and ψ:

        F_i = φ(h_i) − mean of φ + b,    σ = ψ(h̄)   (xx, yy, zz, yz, xz, xy)

    Where the backbone has vectors v_ic and harmonics t_ic of degree 2 beside invariant features, with c channels:

        F_i = Σ_c φ_c(h_i) v_ic,    σ = mean of [ψ_0(h_i) 1 + Σ_c ψ_c(h_i) Σ_m t_icm B_m]

    The first takes away the net force, so that an atom feels the mean over the structure. h̄ is the mean of h.

    Args:
        width: of h.
        hidden: widths of the layers of both perceptrons.
        channels: their number; 0 for the first kind.
        stress: whether there is a head for it.
    """

    shift: Tensor
    """() eV/Å, b: the mean of all components of the labels, which some public models add."""

    def __init__(self, width: int, hidden: Sequence[int], channels: int, stress: bool) -> None:
        super().__init__()
        self.channels, self.widest = channels, max([width, *hidden])
        self.forces = mlp([width, *hidden, channels or 3])
        self.stress = mlp([width, *hidden, channels + 1 if channels else 6]) if stress else None
        self.register_buffer("shift", torch.zeros(()))

    def forward(self, streams: Sequence[Tensor], harmonics: Tensor | None, graph: Graph) -> Direct:
        """Features of each stream and, for the second kind, coefficients of degrees 0 to 2, (N, 9, channels)."""
        of_atoms = over_atoms(lambda *h: self.forces(torch.cat(h, dim=1)), *streams, widest=self.widest)
        if harmonics is None:
            forces = of_atoms.to(torch.float64)
            mean, _ = mean_over_atoms(forces, graph)
            forces = forces - mean.index_select(0, graph.batch) + self.shift
        else:
            forces = torch.einsum("nc,nxc->nx", of_atoms, harmonics[:, 1:4]).to(torch.float64)
        return Direct(forces, self._stress(streams, harmonics, graph))

    def _stress(self, streams: Sequence[Tensor], harmonics: Tensor | None, graph: Graph) -> Tensor:
        head = self.stress
        if head is None:
            return torch.full_like(graph.cell, float("nan"))
        if harmonics is None:
            pooled, _ = mean_over_atoms(torch.cat(list(streams), dim=1), graph)
            return cast(Tensor, head(pooled))[:, VOIGT].to(torch.float64)
        gates = over_atoms(lambda *h: head(torch.cat(h, dim=1)), *streams, widest=self.widest)
        of_degree_2 = torch.einsum("nc,nmc->nm", gates[:, 1:], harmonics[:, 4:9])
        mean, _ = mean_over_atoms(torch.cat([gates[:, :1], of_degree_2], dim=1).to(torch.float64), graph)
        isotropic = mean[:, :1, None] * torch.eye(3).to(mean)
        return isotropic + torch.einsum("gm,mxy->gxy", mean[:, 1:], mean.new_tensor(DEGREE_2))


def without_torque(forces: Tensor, positions: Tensor) -> Tensor:
    """Forces on a free molecule with the smallest change that takes away their torque, F_i + μ × (x_i − x̄).

    A graph holds no positions, so that this is left to whoever has them.

    Args:
        forces: (N, 3).
        positions: (N, 3) Å, of one structure without a cell.
    """
    arms = positions - positions.mean(0)
    torque = torch.linalg.cross(arms, forces).sum(0)
    # Σ a × (μ × a) = (Σ|a|² − Σ a aᵀ) μ; singular for atoms on a line, whose torque along it is zero.
    inertia = arms.square().sum() * torch.eye(3, dtype=arms.dtype) - arms.T @ arms
    turn = -torch.linalg.pinv(inertia, hermitian=True) @ torque
    return cast(Tensor, forces + torch.linalg.cross(turn.expand_as(arms), arms))
