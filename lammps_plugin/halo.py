"""The exchange of ghost rows through LAMMPS' own communication."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Swap = Callable[[int | None, int, int, int, int], int]
"""(pair, adjoint, bytes of a number, width, address) → 0 when all went well; works in place."""
Add = Callable[[int | None, int, int], int]
"""(pair, count, address of as many float64) → 0 when all went well; sums over all ranks in place."""


class Halo:
    """An exchange handler (see :mod:`triforces_deploy.exchange`) for one pair style.

    Args:
        swap: the function of the C++ side that moves rows.
        add: the one that sums numbers.
        pair: the pair style they belong to.
    """

    def __init__(self, swap: Swap, add: Add, pair: int | None) -> None:
        self._swap = swap
        self._add = add
        self._pair = pair
        self.forwards: list[int] = []
        """Bytes of a row in each exchange since the list was last emptied."""
        self.adjoints: list[int] = []

    def forward(self, h: Tensor) -> Tensor:
        return self._moved(h, adjoint=False)

    def adjoint(self, g: Tensor) -> Tensor:
        return self._moved(g, adjoint=True)

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over all ranks, every one of which must call."""
        array = (ctypes.c_double * len(values))(*values)
        if self._add(self._pair, len(values), ctypes.addressof(array)):
            raise RuntimeError("LAMMPS' communication between ranks failed")
        return list(array)

    def everywhere(self, holds: bool) -> bool:
        """Whether something holds on every rank."""
        return self.total([float(not holds)]) == [0.0]

    def _moved(self, rows: Tensor, adjoint: bool) -> Tensor:
        if rows.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"only float32 and float64 rows travel between ranks, got {rows.dtype}")
        out = rows.clone(memory_format=torch.contiguous_format)
        (self.adjoints if adjoint else self.forwards).append(out.element_size() * out.shape[1])
        # Also with no rows at all: the other ranks wait for this one.
        if self._swap(self._pair, int(adjoint), out.element_size(), out.shape[1], out.data_ptr()):
            raise RuntimeError("LAMMPS' communication between ranks failed")
        return out
