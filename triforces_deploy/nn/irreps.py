"""Layers on spherical-harmonic coefficients of atoms, (N, (l_max+1)², C), that commute with rotations; see sphere.py."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from triforces_deploy.nn.constant import Constant
from triforces_deploy.nn.sphere import SphereGrid, degrees

NORM_EPS = 1e-5


class IrrepsNorm(nn.Module):
    """Divides by the root mean square over channels and, with equal shares, degrees, after the scalars' mean is taken away.

    y_lm = g_l x_lm / sqrt(mean_l mean_c |x_lc|² / (2l+1) + ε), with |x_lc|² = Σ_m x_lmc²; scalars also get a bias.
    """

    expand: Tensor

    def __init__(self, l_max: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(l_max + 1, channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("expand", torch.tensor(degrees(l_max)), persistent=False)
        self.shares = Constant(1.0 / ((2 * np.array(degrees(l_max)) + 1) * (l_max + 1) * channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, (l_max+1)², C) → the same."""
        scalars = x[:, :1]
        x = torch.cat([scalars - scalars.mean(dim=2, keepdim=True), x[:, 1:]], dim=1)
        scale = torch.rsqrt((x.square() * self.shares(x)[:, None]).sum(dim=(1, 2), keepdim=True) + NORM_EPS)
        x = x * scale * self.weight.index_select(0, self.expand)
        return torch.cat([x[:, :1] + self.bias, x[:, 1:]], dim=1)


class IrrepsLinear(nn.Module):
    """One matrix for each degree, and a bias for the scalars."""

    def __init__(self, l_max: int, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(l_max + 1, n_out, n_in).uniform_(-1.0, 1.0) / n_in**0.5)
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """(N, (l_max+1)², n_in) → (N, (l_max+1)², n_out)."""
        parts = [functional.linear(x[:, :1], self.weight[0], self.bias)]
        for degree in range(1, self.weight.shape[0]):
            parts.append(functional.linear(x[:, degree**2 : (degree + 1) ** 2], self.weight[degree]))
        return torch.cat(parts, dim=1)


class SpectralFeedForward(nn.Module):
    """Linear, gate, linear: scalars pass a SiLU, other degrees are multiplied by sigmoids of a function of the scalars."""

    def __init__(self, l_max: int, channels: int, hidden: int) -> None:
        super().__init__()
        self.gates = nn.Linear(channels, l_max * hidden)
        self.inward = IrrepsLinear(l_max, channels, hidden)
        self.outward = IrrepsLinear(l_max, hidden, channels)
        self.widest = (l_max + 1) ** 2 * max(channels, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(N, (l_max+1)², C) → the same."""
        gates = torch.sigmoid(functional.silu(self.gates(x[:, 0]))).unflatten(1, (-1, self.inward.bias.shape[0]))
        x = self.inward(x)
        parts = [functional.silu(x[:, :1])]
        for k, gate in enumerate(gates.split(1, dim=1), start=1):
            parts.append(x[:, k**2 : (k + 1) ** 2] * gate)
        return cast(Tensor, self.outward(torch.cat(parts, dim=1)))


class GridFeedForward(nn.Module):
    """The same perceptron at every direction of a grid on the sphere. It commutes with rotations only as far as the grid does.

    Where no resolution is given the grid is the smallest on which back and forth is the identity, and one azimuth more.
    """

    def __init__(self, l_max: int, channels: int, hidden: int, resolution: int | None) -> None:
        super().__init__()
        n_polar, n_azimuths = (2 * l_max + 2, 2 * l_max + 3) if resolution is None else (resolution, resolution)
        self.grid = SphereGrid(l_max, n_polar, n_azimuths)
        sizes = [(channels, hidden), (hidden, hidden), (hidden, channels)]
        first, second, third = (nn.Linear(n_in, n_out, bias=False) for n_in, n_out in sizes)
        self.layers = nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), third)
        self.widest = n_polar * n_azimuths * max(channels, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(N, (l_max+1)², C) → the same."""
        return self.grid.coefficients(self.layers(self.grid.points(x)))
