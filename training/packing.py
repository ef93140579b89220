"""Structures into flat arrays: in memory for files that are read at the start, on disk for ``tfdeploy data convert``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray

from triforces_deploy.neighbours import OVERLAP, check_geometry, check_overlap, image_pairs
from triforces_deploy.training.packed import Packed, assembled
from triforces_deploy.training.packed_index import FORMAT, INDEX, LAYOUT, Index
from triforces_deploy.training.sources.base import Record

_FURTHEST = np.iinfo(np.int8).max
"""Cell vectors that a shift can count."""


@dataclasses.dataclass(frozen=True)
class Labels:
    """Of one structure; NaN where a label is not known."""

    energy: float
    """eV."""
    forces: NDArray[np.float64]
    """(N, 3) eV/Å."""
    stress: NDArray[np.float64]
    """(3, 3) eV/Å³, ASE's sign."""


class Packer:
    """Takes structures one by one; use it in a ``with`` block where it writes to a folder.

    Args:
        cutoff: Å, of the neighbour lists.
        folder: where the arrays grow; in memory without one.
    """

    def __init__(self, cutoff: float, folder: Path | None = None) -> None:
        self.cutoff, self.folder = cutoff, folder
        self.counts = {"structures": 0, "atoms": 0, "edges": 0}
        self._parts: dict[str, list[NDArray[Any]]] = {name: [] for name in LAYOUT}
        self._streams: dict[str, BinaryIO] = {}
        self._digests = {name: hashlib.sha256() for name in LAYOUT}
        self._elements = np.zeros(len(chemical_symbols), bool)
        self._files: dict[str, int] = {}
        self._trajectories: dict[str, int] = {}
        self._undeclared: set[int] = set()
        self._targets: dict[str, _Target] = {}

    def __enter__(self) -> Packer:
        if self.folder is not None:
            self._streams = {name: (self.folder / f"{name}.bin").open("wb") for name in LAYOUT}
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._streams.values():
            stream.close()

    def add(self, record: Record, labels: Labels, file: Path, row: int, nearest: float = OVERLAP) -> None:
        """Append one structure, which is the ``row``-th of its file.

        Raises:
            UserError: a geometry for which there is no neighbour list, or atoms closer than ``nearest`` Å.
        """
        atoms, trajectory = record.atoms, record.trajectory
        i, j, shift = _edges(atoms, self.cutoff, nearest)
        name = trajectory if trajectory is not None else f"{file.name}:{atoms.get_chemical_formula()}"
        number = self._trajectories.setdefault(name, len(self._trajectories))
        if trajectory is None:
            self._undeclared.add(number)
        self._elements[atoms.numbers] = True
        for target, value, of in _targets_of(record):
            self._add_target(target, value, of)
        row_of: dict[str, object] = {
            "numbers": atoms.numbers, "positions": atoms.positions, "forces": labels.forces,
            "degree": np.bincount(i, minlength=len(atoms)), "neighbour": j, "shift": shift,
            "n_atoms": [len(atoms)], "n_edges": [len(i)], "cell": atoms.cell.array[None], "pbc": atoms.pbc[None],
            "energy": [labels.energy], "stress": labels.stress[None], "trajectory": [number],
            "file": [self._files.setdefault(str(file), len(self._files))], "row": [row],
        }  # fmt: skip
        for key, array in row_of.items():
            self._append(key, np.ascontiguousarray(array, LAYOUT[key][0]))
        self.counts = {key: self.counts[key] + n for key, n in (("structures", 1), ("atoms", len(atoms)), ("edges", len(i)))}

    def misfit(self, record: Record) -> str:
        """What keeps a record from being added: a target that earlier structures have in another shape. '' for nothing."""
        for name, value, of in _targets_of(record):
            known = self._targets.get(name)
            if known is not None and (known.of, known.components) != (of, value.shape[1]):
                return f"'{name}' has {value.shape[1]} numbers per {of[:-1]}, earlier {known.components} per {known.of[:-1]}"
        return ""

    def _add_target(self, name: str, value: NDArray[np.float64], of: str) -> None:
        """Append what a structure has of it, below NaN for the structures since the last that had it."""
        if name not in self._targets:
            self._targets[name] = _Target(of, value.shape[1])
            self._open(f"target.{name}")
        target = self._targets[name]
        self._append(f"target.{name}", np.concatenate([target.missing(self.counts[of]), value]))
        target.rows = self.counts[of] + len(value)

    def _open(self, name: str) -> None:
        self._parts[name], self._digests[name] = [], hashlib.sha256()
        if self.folder is not None:
            self._streams[name] = (self.folder / f"{name}.bin").open("wb")

    def _fill_targets(self) -> None:
        """NaN for the last structures, where they lack a target."""
        for name, target in self._targets.items():
            self._append(f"target.{name}", target.missing(self.counts[target.of]))
            target.rows = self.counts[target.of]

    @property
    def n_trajectories(self) -> int:
        """Different ones so far."""
        return len(self._trajectories)

    def packed(self) -> Packed:
        """What was added, in memory."""
        self._fill_targets()
        index = self._index()
        layout = LAYOUT | index.target_layout()
        return assembled(
            index,
            {name: np.concatenate([np.zeros((0, *shape), kind), *self._parts[name]]) for name, (kind, shape) in layout.items()},
        )

    def write_index(self, about: dict[str, Any]) -> None:
        """Finish the folder; ``about`` goes into the index as it is."""
        assert self.folder is not None
        self._fill_targets()
        for stream in self._streams.values():
            stream.flush()
        content = {
            "format": FORMAT, "counts": self.counts, **dataclasses.asdict(self._index()), "about": about,
            "sha256": {name: digest.hexdigest() for name, digest in self._digests.items()},
        }  # fmt: skip
        (self.folder / INDEX).write_text(json.dumps(content, indent=1), encoding="utf-8")

    def _append(self, name: str, array: NDArray[Any]) -> None:
        if self.folder is None:
            self._parts[name].append(array)
        else:
            self._streams[name].write(array.data)
            self._digests[name].update(array.data)

    def _index(self) -> Index:
        return Index(
            cutoff=self.cutoff,
            elements=tuple(chemical_symbols[z] for z in np.nonzero(self._elements)[0]),
            files=tuple(self._files),
            trajectories=tuple(self._trajectories),
            undeclared=tuple(sorted(self._undeclared)),
            targets=(names := tuple(sorted(self._targets))),
            components=tuple(self._targets[name].components for name in names),
            of_atoms=tuple(name for name in names if self._targets[name].of == "atoms"),
        )


@dataclasses.dataclass
class _Target:
    """What has been written of a property."""

    of: str
    """'atoms' or 'structures'."""
    components: int
    rows: int = 0

    def missing(self, until: int) -> NDArray[np.float64]:
        """NaN for the rows that lack it."""
        return np.full((until - self.rows, self.components), np.nan)


def _targets_of(record: Record) -> Iterator[tuple[str, NDArray[np.float64], str]]:
    """Name, (rows, components) and what the rows are."""
    for name, value in record.targets.items():
        yield name, np.asarray(value, np.float64).reshape(1, -1), "structures"
    for name in record.atom_targets.keys() - record.targets.keys():
        values = record.atom_targets[name]
        yield name, np.asarray(values, np.float64).reshape(len(record.atoms), -1), "atoms"


def _edges(atoms: Atoms, cutoff: float, nearest: float) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Centre, neighbour and shift, sorted by centre as :func:`~triforces_deploy.neighbours.graph_from_atoms` sorts them."""
    check_geometry(atoms)
    i, j, shift = image_pairs(atoms, cutoff)
    if len(shift) and np.abs(shift).max() > _FURTHEST:  # atoms that have wandered through many cells
        atoms.wrap()
        i, j, shift = image_pairs(atoms, cutoff)
    check_overlap(i, j, atoms.positions[j] - atoms.positions[i] + shift @ atoms.cell.array, nearest)
    order = np.argsort(i, kind="stable")
    return i[order], j[order], shift[order]
