"""The exchange of ghost rows through LAMMPS' Kokkos coupling, and the test that it does what it should."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from triforces_deploy.errors import UserError
from triforces_deploy.exchange import Handler

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


def self_test(exchange: Handler, n_local: int, n_total: int) -> None:
    """Check the exchange on rows whose answer is known; every rank must call, with no atoms too.

    With C the exchange: ghosts must get whole rows of owners and owners keep theirs; a second C must change nothing; and
    Cᵀ must bring back to each owner exactly what its ghosts got, (Cᵀ C x)_i = (1 + ghosts of i) x_i, and clear the ghosts.
    Releases between October and December 2025 on GPUs fail the first of these for more than one column.

    Raises:
        UserError: the exchange is wrong; results of a run would be, too.
    """
    ratios = torch.tensor([1.0, 2.0, 3.0, 5.0], dtype=torch.float64)
    x = (1.0 + torch.rand(n_total, 1, dtype=torch.float64)) * ratios
    x[n_local:] = -1.0
    y = exchange.forward(x)
    ghosts = y[n_local:]
    forward_right = (
        torch.equal(y[:n_local], x[:n_local])
        and torch.equal(ghosts, ghosts[:, :1] * ratios)
        and bool(((ghosts[:, 0] >= 1.0) & (ghosts[:, 0] <= 2.0)).all())
        and torch.equal(exchange.forward(y), y)
    )
    copies = exchange.adjoint(torch.ones(n_total, 4, dtype=torch.float64))
    back = exchange.adjoint(y)
    adjoint_right = (
        bool((back[n_local:] == 0).all())
        and torch.equal(copies[:n_local], copies[:n_local].round())
        and bool((copies[:n_local, 0] > _ghosts_of_own_atoms(x[:n_local, 0], ghosts[:, 0])).all())
        and torch.allclose(back[:n_local], copies[:n_local] * x[:n_local], rtol=1e-12, atol=0.0)
    )
    if not (forward_right and adjoint_right):
        raise UserError(
            "LAMMPS' exchange of ghost atoms gives wrong features (a known defect of releases from October to December "
            "2025); use LAMMPS 22Jul2025 or one of 2026, or pair_style triforces"
        )


def _ghosts_of_own_atoms(values: Tensor, ghosts: Tensor) -> Tensor:
    """How many ghosts hold the value of each owned atom; those of other ranks' atoms hold none of them."""
    if len(values) == 0:
        return torch.zeros(0, dtype=torch.int64)
    ordered, order = values.sort()
    place = torch.searchsorted(ordered, ghosts.contiguous()).clamp(max=len(values) - 1)
    return torch.bincount(order[place[ordered[place] == ghosts]], minlength=len(values))
