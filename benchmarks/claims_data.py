"""Data of benchmarks/claims.py: a pool of structures, a test set of other trajectories, and small samples of the pool.

Three sets, each a folder, for their labels have different zeros of energy:

- ``tersoff``: point defects in cells of about 8 atoms of Si, Ge, SiC and SiGe, SiCGe.tersoff.
- ``molecules``: closed shells of the G2 set, GFN2-xTB. The test has the same molecules as the pool, moving otherwise. Rarer
  elements are left out: a small sample may lack them, and its error would be that of their atoms' energies alone.
- ``cells``: point defects in cells of about 8 atoms of Si and SiC, GFN1-xTB, seconds each.

Test structures come from another seed than the pool, so that no trajectory is in both.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read, write

from triforces_deploy.files import replacing
from triforces_deploy.training.converting import Limits, convert
from triforces_deploy.training.labels import LabelConfig, label

TERSOFF = (
    LabelConfig(hosts=("Si", "SiC"), substitutes=("Ge",), atoms=8, trajectories=600, frames=20, every=20),
    LabelConfig(hosts=("Ge",), substitutes=("Si",), atoms=8, trajectories=225, frames=20, every=20),
    LabelConfig(hosts=("SiGe",), substitutes=(), defects=("none", "vacancy", "antisite"), atoms=8, trajectories=225, frames=20,
                every=20),
)  # fmt: skip
MOLECULES = (LabelConfig(potential="GFN2-xTB", hosts=("g2",), trajectories=480, frames=16, every=10),)
CELLS = (
    LabelConfig(potential="GFN1-xTB", hosts=("Si", "SiC"), substitutes=("Ge",), atoms=8, trajectories=24, frames=8, every=10),
)


@dataclasses.dataclass(frozen=True)
class DataSet:
    """Where it is and what the models must know of it."""

    folder: Path
    labels: tuple[LabelConfig, ...]
    elements: tuple[str, ...]
    cutoff: float
    """Å. Tersoff's silicon sees 3 Å; tight binding has no such limit."""
    test_part: int
    """The test has one trajectory for so many of the pool."""

    @property
    def pool(self) -> Path:
        """All structures but those of the test, extxyz."""
        return self.folder / "pool.extxyz"

    @property
    def test(self) -> Path:
        """Packed structures of the test."""
        return self.folder / "test"

    def sample(self, size: int, seed: int) -> Path:
        """So many packed structures of the pool, drawn with a seed."""
        return self.folder / f"sample-{size}-{seed}"


def data_sets(folder: Path) -> dict[str, DataSet]:
    """By name."""
    common = ("H", "C", "N", "O", "F", "S", "Cl")
    return {
        "tersoff": DataSet(folder / "tersoff", TERSOFF, ("C", "Si", "Ge"), 3.5, 20),
        "molecules": DataSet(folder / "molecules", MOLECULES, common, 4.5, 4),
        "cells": DataSet(folder / "cells", CELLS, ("C", "Si", "Ge"), 4.5, 4),
    }


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time do what is inside."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def make(data: DataSet) -> int:
    """Label pool and test and pack the test; what is there stays. The structures of the pool."""
    data.folder.mkdir(parents=True, exist_ok=True)
    with locked(data.folder):
        pool = _labelled(data, data.pool, seed=0, part=1)
        test = _labelled(data, data.folder / "test.extxyz", seed=1, part=data.test_part)
        if not data.test.exists():
            _pack(test, data.test, data.cutoff)
    with pool.open() as stream:
        return sum("Properties=" in line for line in stream)


def make_sample(data: DataSet, size: int, seed: int) -> Path:
    """Draw structures of the pool, each as likely as the others, and pack them; what is there stays."""
    out = data.sample(size, seed)
    with locked(data.folder):
        if not out.exists():
            frames = _frames(data.pool)
            chosen = np.random.default_rng([seed, size]).choice(len(frames), size, replace=False)
            part = data.folder / f"{out.name}.extxyz"
            _write(part, [frames[k] for k in sorted(chosen)])
            _pack(part, out, data.cutoff)
    return out


def _labelled(data: DataSet, out: Path, seed: int, part: int) -> Path:
    if not out.is_file():
        frames: list[Atoms] = []
        for k, config in enumerate(data.labels):
            piece = data.folder / f"{out.stem}-{k}.extxyz"
            if not piece.is_file():
                few = dataclasses.replace(config, seed=seed, trajectories=max(1, config.trajectories // part))
                print(f"{piece}: {label(few, piece, progress=False)}", flush=True)
            frames += [atoms for atoms in _frames(piece) if set(atoms.get_chemical_symbols()) <= set(data.elements)]
        _write(out, frames)
    return out


def _frames(path: Path) -> list[Atoms]:
    found = read(path, ":", format="extxyz")
    return found if isinstance(found, list) else [found]


def _write(out: Path, frames: Sequence[Atoms]) -> None:
    with replacing(out) as part:
        write(part, list(frames), format="extxyz")


def _pack(path: Path, out: Path, cutoff: float) -> None:
    convert([path], out, cutoff, Limits())
