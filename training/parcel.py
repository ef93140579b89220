"""Batches on their way from a worker: everything in one piece of shared memory.

DataLoader sends each tensor by itself, with a file and a conversation between the processes for each, which takes as long as
making a batch of packed structures.
"""

from __future__ import annotations

import io
import pickle
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

_ALIGNED = 64
"""Bytes. Where a tensor may begin."""


class Parcel(NamedTuple):
    """What :func:`wrapped` makes of tensors in containers."""

    header: bytes
    places: list[tuple[int, int]]
    """Begin and end of each tensor in ``content``."""
    content: Tensor
    """(B,) uint8."""


class _Pickler(pickle.Pickler):
    """Leaves the content of tensors out."""

    def reducer_override(self, found: Any) -> Any:
        return (torch.from_numpy, (found.numpy(),)) if isinstance(found, Tensor) else NotImplemented


def wrapped(found: Any) -> Parcel:
    """Put tensors of the CPU, in containers of any kind, side by side."""
    buffers: list[pickle.PickleBuffer] = []
    header = io.BytesIO()
    _Pickler(header, protocol=5, buffer_callback=buffers.append).dump(found)
    places, end = [], 0
    for buffer in buffers:
        start = -(-end // _ALIGNED) * _ALIGNED
        end = start + buffer.raw().nbytes
        places.append((start, end))
    content = torch.empty(end, dtype=torch.uint8)
    flat = content.numpy()
    for buffer, (start, stop) in zip(buffers, places, strict=True):
        flat[start:stop] = np.frombuffer(buffer.raw(), np.uint8)
    return Parcel(header.getvalue(), places, content)


def unwrapped(parcel: Parcel) -> Any:
    """The same containers again; their tensors are views of the parcel's content."""
    flat = parcel.content.numpy().data
    return pickle.loads(parcel.header, buffers=[flat[start:end] for start, end in parcel.places])
