"""SIGReg: how far embeddings are from a standard Gaussian, along random directions (Balestriero and LeCun, 2025).

Along each direction d_s the Epps-Pulley statistic compares the characteristic function of the n projections y_i = z_i·d_s
with that of a standard normal, by the trapezoid rule on 17 points t_q = 3q/16 of 0 … 3, doubled by symmetry:

    T_s = n Σ_q W_q [(1/n Σ_i cos t_q y_i − e^{−t_q²/2})² + (1/n Σ_i sin t_q y_i)²],   W_q = ω_q e^{−t_q²/2},

ω = 3/16 at both ends and twice that between. The loss is the mean of T_s over the directions. Embeddings are not
standardised before. Of Gaussian embeddings its expectation is 1.05246, whatever n.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from triforces_deploy.training.objectives.across import all_sum, n_rows

POINTS = 17
STEP = 3.0 / 16.0
CHUNK = 1 << 18
"""Numbers of one tensor at a time: a few of these fit into a processor's cache, all projections would not."""


def quadrature(like: Tensor) -> tuple[Tensor, Tensor]:
    """e^{−t²/2} and W at the points t, (17,) each."""
    t = STEP * torch.arange(POINTS, dtype=like.dtype, device=like.device)
    normal = torch.exp(-0.5 * t.square())
    omega = torch.full_like(t, 2.0 * STEP)
    omega[0] = omega[-1] = STEP
    return normal, omega * normal


def directions(width: int, slices: int, key: int, like: Tensor) -> Tensor:
    """(width, slices) Unit vectors, uniform on the sphere; the same on every process that has the same key."""
    drawn = torch.randn((width, slices), generator=torch.Generator().manual_seed(key), dtype=torch.float64)
    unit: Tensor = (drawn / drawn.norm(dim=0, keepdim=True)).to(like)
    return unit


def sigreg(embeddings: Tensor, along: Tensor) -> Tensor:
    """The loss, (), of embeddings (n, D) along directions (D, S), over the embeddings of all processes; 0 of fewer than 2."""
    n = n_rows(embeddings)
    cosines, sines = _Moments.apply(embeddings, along)
    normal, weight = quadrature(embeddings)
    real, imaginary = all_sum(cosines) / n - normal[:, None], all_sum(sines) / n
    statistic = n * (weight[:, None] * (real.square() + imaginary.square())).sum(0)
    return torch.where(n < 2, torch.zeros_like(n), statistic.mean())


class _Moments(torch.autograd.Function):
    """Σ_i cos t_q y_is and Σ_i sin t_q y_is, (17, S) each: some directions at a time, computed anew for the derivative."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(embeddings, along)
        cosines, sines = embeddings.new_zeros((2, POINTS, along.shape[1]))
        for some in _chunks(embeddings, along):
            for q, (cosine, sine) in enumerate(_powers(embeddings @ along[:, some])):
                cosines[q, some], sines[q, some] = cosine.sum(0), sine.sum(0)
        return cosines, sines

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        embeddings, along = ctx.saved_tensors
        of_cosines, of_sines = gradients
        total = torch.zeros_like(embeddings)
        for some in _chunks(embeddings, along):
            of_projections = torch.zeros_like(embeddings[:, :1])
            for q, (cosine, sine) in enumerate(_powers(embeddings @ along[:, some])):
                of_projections = of_projections + q * STEP * (of_sines[q, some] * cosine - of_cosines[q, some] * sine)
            total += of_projections @ along[:, some].T
        return total, None


def _chunks(embeddings: Tensor, along: Tensor) -> list[slice]:
    size = max(1, CHUNK // max(1, embeddings.shape[0]))
    return [slice(start, start + size) for start in range(0, along.shape[1], size)]


def _powers(projections: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Cosine and sine of 0, 1, … 16 times an angle, by the addition theorem: two trigonometric functions instead of 34."""
    c1, s1 = torch.cos(STEP * projections), torch.sin(STEP * projections)
    c, s = torch.ones_like(projections), torch.zeros_like(projections)
    for q in range(POINTS):
        if q:
            c, s = c * c1 - s * s1, s * c1 + c * s1
        yield c, s
