"""Frames as the pair style sends them, of clusters: no ghosts, every pair within cutoff and skin."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from ase import Atoms

from tests.lammps.harness import Array
from triforces_deploy.graph import N_NUMBERS

SKIN = 1.0


class Sender:
    """LAMMPS' side of the route: keeps a list until told to build another."""

    def __init__(self, cutoff: float) -> None:
        self._reach = cutoff + SKIN
        self.kept: dict[str, Any] = {}

    def frame(self, atoms: Atoms, new_list: bool = True, atom_virials: bool = False) -> SimpleNamespace:
        if new_list:
            self.kept = self._listed(atoms)
        k = self.kept
        k["positions"] = np.ascontiguousarray(atoms.positions)
        k["numbers"] = atoms.numbers.astype(np.int64)
        k["counts"] = np.bincount(atoms.numbers, minlength=N_NUMBERS).astype(np.int64)
        n = len(atoms)
        return SimpleNamespace(
            atoms=n,
            rows=n,
            owned=n,
            centres=n,
            pairs=len(k["neighbour"]),
            new_list=int(new_list),
            new_numbers=1,
            atom_virials=int(atom_virials),
            **{name: array.ctypes.data if array.size else None for name, array in k.items()},
        )

    def _listed(self, atoms: Atoms) -> dict[str, Any]:
        near = (atoms.get_all_distances() < self._reach) & ~np.eye(len(atoms), dtype=bool)
        return {
            "row": np.arange(len(atoms), dtype=np.int32),
            "centre": np.arange(len(atoms), dtype=np.int32),
            "first": np.concatenate([[0], near.sum(1).cumsum()]).astype(np.int64),
            "neighbour": np.nonzero(near)[1].astype(np.int32),
        }


def read(address: int, shape: tuple[int, ...]) -> Array:
    """What a frame's address leads to."""
    import ctypes

    count = int(np.prod(shape))
    return np.array((ctypes.c_double * count).from_address(address)).reshape(shape)
