"""The one seam for ghost atoms: what a rank must know of atoms that another rank owns.

``exchange(h)`` stands between the layers of a model. With no handler installed it copies its input. Under MPI, LAMMPS'
side installs a handler whose ``forward`` overwrites the rows of ghost atoms by those of their owners, y = C h, and whose
``adjoint`` adds the rows of ghosts to their owners and clears them, x̄ = Cᵀ ȳ. Each is the other's derivative.

Both are registered torch operators, so they survive capture: a compiled energy-and-forces graph carries its
communication inside, forward and backward, and calls back into whichever handler is installed when it runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor


class Handler(Protocol):
    """Moves rows between ranks. Every rank must make the same calls with the same width, also with no atoms at all."""

    def forward(self, h: Tensor) -> Tensor:
        """(N, width) contiguous → fresh (N, width) whose ghost rows are their owners' rows."""

    def adjoint(self, g: Tensor) -> Tensor:
        """(N, width) contiguous → fresh (N, width): ghost rows added to their owners' rows, then zero."""


class _Copy:
    def forward(self, h: Tensor) -> Tensor:
        return h.clone(memory_format=torch.contiguous_format)

    def adjoint(self, g: Tensor) -> Tensor:
        return g.clone(memory_format=torch.contiguous_format)


class Recorder(_Copy):
    """Copies, and notes the widths of the rows it is given."""

    def __init__(self) -> None:
        self.widths: list[int] = []

    def forward(self, h: Tensor) -> Tensor:
        self.widths.append(h.shape[1])
        return super().forward(h)


_handlers: list[Handler] = [_Copy()]


@contextmanager
def using(handler: Handler) -> Iterator[None]:
    """Install ``handler`` for the evaluations inside the ``with`` block."""
    _handlers.append(handler)
    try:
        yield
    finally:
        _handlers.pop()


@torch.library.custom_op("triforces::exchange", mutates_args=())
def exchange(h: Tensor) -> Tensor:
    """Give ghost rows the features of their owners: (N, width) → (N, width)."""
    return _handlers[-1].forward(h.contiguous())


@torch.library.custom_op("triforces::exchange_adjoint", mutates_args=())
def exchange_adjoint(g: Tensor) -> Tensor:
    """Add ghost rows to their owners' and clear them: (N, width) → (N, width); the transpose of :func:`exchange`."""
    return _handlers[-1].adjoint(g.contiguous())


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _nothing_to_save(ctx: object, inputs: object, output: object) -> None:
    """Both operators are linear and need nothing of their inputs."""


exchange.register_fake(_like)
exchange_adjoint.register_fake(_like)
exchange.register_autograd(lambda _ctx, g: exchange_adjoint(g), setup_context=_nothing_to_save)
exchange_adjoint.register_autograd(lambda _ctx, g: exchange(g), setup_context=_nothing_to_save)
