"""The exchange of ghost rows through LAMMPS' own communication."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Swap = Callable[[int | None, int, int, int, int], int]
"""(pair, adjoint, bytes of a number, width, address) → 0 when all went well; works in place."""


class Halo:
    """An exchange handler (see :mod:`triforces_deploy.exchange`) for one pair style.

    Args:
        swap: the function of the C++ side.
        pair: the pair style it belongs to.
    """

    def __init__(self, swap: Swap, pair: int | None) -> None:
        self._swap = swap
        self._pair = pair

    def forward(self, h: Tensor) -> Tensor:
        return self._moved(h, adjoint=False)

    def adjoint(self, g: Tensor) -> Tensor:
        return self._moved(g, adjoint=True)

    def _moved(self, rows: Tensor, adjoint: bool) -> Tensor:
        if rows.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"only float32 and float64 rows travel between ranks, got {rows.dtype}")
        # MPI reads the host's memory only. The copy to it waits for the device, the one back does not.
        out = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=rows.is_cuda).copy_(rows)
        # Also with no rows at all: the other ranks wait for this one.
        if self._swap(self._pair, int(adjoint), out.element_size(), out.shape[1], out.data_ptr()):
            raise RuntimeError("LAMMPS' communication between ranks failed")
        return out.to(rows.device, non_blocking=True)
