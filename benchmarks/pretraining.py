"""What pretraining costs beside the model: SIGReg at full size, its memory, and views per second.

    python benchmarks/pretraining.py > benchmarks/results/pretraining.txt

SIGReg is timed forward and backward, on 128-dimensional float32 embeddings along 1,024 directions, beside the formula written
down directly, whose every intermediate result automatic differentiation keeps. One thread, best of three; memory is
that of the tensors that exist at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from ase.build import bulk
from torch import Tensor

from triforces_deploy.peak import peak_bytes
from triforces_deploy.training.objectives.sigreg import POINTS, STEP, directions, quadrature, sigreg
from triforces_deploy.training.view_config import ViewsConfig
from triforces_deploy.training.views import two_views

WIDTH, SLICES = 128, 1024
ROWS = (256, 2048, 8192)
MOST_DIRECT = 2048
"""Rows; the direct formula would need 8 bytes × 17 × 1,024 for each, several times."""
REPEATS = 3


def direct(embeddings: Tensor, along: Tensor) -> Tensor:
    """The loss as its formula reads."""
    projected = (embeddings @ along)[:, :, None] * (STEP * torch.arange(POINTS))
    normal, weight = quadrature(embeddings)
    distance = (torch.cos(projected).mean(0) - normal).square() + torch.sin(projected).mean(0).square()
    return (len(embeddings) * (distance * weight).sum(1)).mean()


def one(name: str, loss_of: Callable[[Tensor, Tensor], Tensor], rows: int) -> None:
    torch.manual_seed(0)
    embeddings = torch.randn(rows, WIDTH, requires_grad=True)
    along = directions(WIDTH, SLICES, 0, embeddings)

    def step() -> None:
        loss_of(embeddings, along).backward()

    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        step()
        best = min(best, time.perf_counter() - start)
    print(f"sigreg {name:6} {rows:6} rows: {best:8.3f} s, {peak_bytes(step) / 2**20:7.0f} MiB", flush=True)


def views() -> None:
    atoms = bulk("Si", "diamond", 5.43, cubic=True).repeat(2)
    n, start = 24, time.perf_counter()
    batch = two_views([(atoms, (0, k)) for k in range(n)], ViewsConfig(), 6.0, key=1)
    seconds = time.perf_counter() - start
    edges = batch.graph.edge_index.shape[1] / (2 * n)
    print(f"views  64 atoms, 6 Å, {edges:.0f} edges on average: {2 * n / seconds:.0f} views/s in one process")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for rows in ROWS:
        one("ours", sigreg, rows)
        if rows <= MOST_DIRECT:
            one("direct", direct, rows)
    views()
