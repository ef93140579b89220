"""Tensors that live in a file: rows written and read in order, for systems whose edges do not fit into memory.

Only the block at work is resident; the operating system keeps as much of the rest in its cache as nobody else needs. The
file has no name and disappears with its tensor, also when the process is killed.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref

import torch
from torch import Tensor

from triforces_deploy.errors import UserError

VARIABLE = "TFDEPLOY_SCRATCH"
LEAST_BYTES = 8 * 2**20
"""Smaller tensors stay in memory."""

_maps: weakref.WeakValueDictionary[int, mmap.mmap] = weakref.WeakValueDictionary()
"""Address of a tensor's storage → its mapping."""


def empty_rows(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An uninitialised tensor of the type of ``like``, in a file of the folder ``TFDEPLOY_SCRATCH`` where that is set."""
    folder = os.environ.get(VARIABLE)
    size = like.element_size() * torch.Size(shape).numel()
    if folder is None or size < LEAST_BYTES or like.device.type != "cpu":
        return like.new_empty(shape)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk must not be found out by a bus error
            mapping = mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise UserError(f"{VARIABLE}={folder}: cannot reserve {size / 2**30:.1f} GiB there: {error.strerror}") from error
    tensor = torch.frombuffer(mapping, dtype=like.dtype).view(shape)
    _maps[tensor.untyped_storage().data_ptr()] = mapping
    return tensor


def put_away(tensor: Tensor) -> Tensor:
    """The same values in a file, where a folder for it is set and the tensor is large; else the tensor itself."""
    if tensor.untyped_storage().data_ptr() in _maps:
        return tensor
    stored = empty_rows(tuple(tensor.shape), tensor)
    if stored.untyped_storage().data_ptr() not in _maps:
        return tensor
    step = max(1, LEAST_BYTES // max(1, tensor[:1].nbytes))
    for start in range(0, tensor.shape[0], step):
        stored[start : start + step] = tensor[start : start + step]
        release(stored, slice(start, min(start + step, tensor.shape[0])))
    return stored


def release(tensor: Tensor, rows: slice) -> None:
    """Give back the memory of rows that will not be needed soon; their values stay in the file."""
    mapping = _maps.get(tensor.untyped_storage().data_ptr())
    if mapping is None:
        return
    row = tensor[:1].nbytes
    first = -(-rows.start * row // mmap.PAGESIZE) * mmap.PAGESIZE
    last = rows.stop * row // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        mapping.madvise(mmap.MADV_DONTNEED, first, last - first)
