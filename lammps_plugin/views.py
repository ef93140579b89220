"""Tensors on memory of LAMMPS."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class _Memory:
    """Memory of LAMMPS in the form numpy reads; unlike a ctypes array it makes no new type for every length."""

    def __init__(self, address: int, shape: tuple[int, ...], kind: str) -> None:
        self.__array_interface__ = {"data": (address, False), "shape": shape, "typestr": kind, "version": 3}


def view(address: int | None, shape: tuple[int, ...], kind: str) -> Tensor:
    """A tensor on memory of LAMMPS, valid during one step; ``kind`` is numpy's, e.g. '<f8'."""
    if address is None or 0 in shape:
        return torch.from_numpy(np.zeros(shape, kind))
    return torch.from_numpy(np.asarray(_Memory(address, shape, kind)))
