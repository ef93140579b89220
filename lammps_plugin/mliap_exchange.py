"""The exchange of ghost rows through LAMMPS' Kokkos coupling."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

HOST_COLUMNS = 3
"""Columns that travel at once in CPU builds, whose buffers LAMMPS makes for three numbers per atom and never checks."""


@runtime_checkable
class Exchanging(Protocol):
    """What a Kokkos build of 22Jul2025 or later offers beyond other builds; tensors (N, width) of one type, contiguous."""

    def forward_exchange(self, source: Tensor, target: Tensor, width: int) -> None:
        """Copy source to target, then overwrite the rows of ghosts by those of their owners."""

    def reverse_exchange(self, source: Tensor, target: Tensor, width: int) -> None:
        """Copy source to target, then add the rows of ghosts to those of their owners and clear them."""

    def update_pair_forces_gpu(self, fij: Any) -> None: ...


class Exchange:
    """An exchange handler (see :mod:`triforces_deploy.exchange`) for one call of LAMMPS.

    Args:
        data: LAMMPS' object.
        device: where its arrays are.
        whole: whether any number of columns may travel at once, as on GPUs; else ``HOST_COLUMNS``.
    """

    def __init__(self, data: Exchanging, device: torch.device, whole: bool = False) -> None:
        self._data, self._device, self._whole = data, device, whole

    def forward(self, h: Tensor) -> Tensor:
        return self._moved(h, adjoint=False)

    def adjoint(self, g: Tensor) -> Tensor:
        return self._moved(g, adjoint=True)

    def _moved(self, rows: Tensor, adjoint: bool) -> Tensor:
        move = self._data.reverse_exchange if adjoint else self._data.forward_exchange
        there = rows.to(self._device)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        step = max(rows.shape[1], 1) if self._whole else HOST_COLUMNS
        pieces = []
        for source in there.split(step, dim=1):
            source = source.contiguous()
            target = torch.zeros_like(source)
            move(source, target, source.shape[1])
            pieces.append(target)
        return torch.cat(pieces, dim=1).to(rows.device)
