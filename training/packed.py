"""Structures with labels and neighbour lists as flat arrays, in memory or mapped from disk; any subset is a batch at once.

A folder holds one file of raw numbers per array and ``index.json``, which says what they are. Nothing is read until a batch
asks for it, and several processes share the pages.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray

from triforces_deploy.errors import UserError
from triforces_deploy.files import existing
from triforces_deploy.graph import Graph, count_elements
from triforces_deploy.neighbour_cap import capped
from triforces_deploy.property_config import PropertyConfig
from triforces_deploy.training.packed_index import FORMAT, INDEX, LAYOUT, Arrays, Index
from triforces_deploy.training.structures import Frame, Sample, Samples


@dataclasses.dataclass(frozen=True, eq=False)
class Packed(Samples):
    """S structures. As a sequence it gives one :class:`~triforces_deploy.training.structures.Sample` at a time."""

    about: Index
    arrays: Arrays
    first_atom: NDArray[np.int64]
    """(S + 1,)"""
    first_edge: NDArray[np.int64]
    """(S + 1,)"""
    cutoff: float
    """Å, that the graphs are made with; not above that of the lists."""
    max_neighbours: int | None = None
    properties: tuple[PropertyConfig, ...] = ()
    """Targets that samples carry; NaN where there is none of the name."""

    def __len__(self) -> int:
        return len(self.first_atom) - 1

    def batch(self, chosen: Sequence[int] | NDArray[np.int64]) -> Sample:
        """Some structures, at least one, side by side in the order asked for, with their graphs and labels."""
        of_atoms = [slice(self.first_atom[k], self.first_atom[k + 1]) for k in chosen]
        at = np.asarray(chosen, np.int64)
        n_atoms, n_edges = (np.diff(f)[at] for f in (self.first_atom, self.first_edge))
        cell: NDArray[np.float64] = self.arrays["cell"][at]
        edge_index, vector = self._edges(chosen, of_atoms, cell, int(n_edges.sum()))
        if self.cutoff < self.about.cutoff:
            near = np.einsum("ek,ek->e", vector, vector) < self.cutoff**2
            edge_index, vector = edge_index[:, near], vector[near]
        numbers = torch.from_numpy(self._gather("numbers", of_atoms).astype(np.int64))
        batch = torch.from_numpy(np.repeat(np.arange(len(at)), n_atoms))
        solid = np.count_nonzero(cell.any(axis=2), axis=1) == 3
        graph = Graph(
            numbers=numbers,
            edge_index=torch.from_numpy(edge_index),
            edge_vector=torch.from_numpy(vector),
            batch=batch,
            owned=torch.ones(len(numbers), dtype=torch.bool),
            composition=count_elements(numbers, batch, len(at)),
            cell=torch.from_numpy(np.where(solid[:, None, None], cell, 0.0)),
        )
        return Sample(
            graph=capped(graph, self.max_neighbours),
            energy=torch.from_numpy(self.arrays["energy"][at]),
            forces=torch.from_numpy(self._gather("forces", of_atoms)),
            stress=torch.from_numpy(self.arrays["stress"][at]),
            targets={p.name: torch.from_numpy(self._target(p, at, of_atoms)) for p in self.properties},
        )

    def _target(self, wanted: PropertyConfig, at: NDArray[np.int64], of_atoms: list[slice]) -> NDArray[np.float64]:
        if wanted.name not in self.about.targets:
            rows = len(at) if wanted.of == "structure" else sum(s.stop - s.start for s in of_atoms)
            return np.full((rows, wanted.components()), np.nan)
        name = f"target.{wanted.name}"
        found: NDArray[np.float64] = self.arrays[name][at] if wanted.of == "structure" else self._gather(name, of_atoms)
        return found

    def atoms(self, k: int) -> Atoms:
        """One structure without its labels."""
        own = slice(self.first_atom[k], self.first_atom[k + 1])
        arrays = self.arrays
        return Atoms(arrays["numbers"][own], np.array(arrays["positions"][own]), cell=arrays["cell"][k], pbc=arrays["pbc"][k])

    def target(self, name: str) -> NDArray[np.float64]:
        """(S, K) or, of the atoms, (A, K) of another property with K components; UserError where there is none of that name."""
        if name not in self.about.targets:
            raise UserError(f"the data have no target '{name}'; they have {', '.join(self.about.targets) or 'none'}")
        return self.arrays[f"target.{name}"]

    def trajectory(self, k: int) -> str:
        """The path of configurations that a structure belongs to."""
        return self.about.trajectories[int(self.arrays["trajectory"][k])]

    def frame(self, k: int) -> Frame:
        """One structure and where it comes from."""
        number = int(self.arrays["trajectory"][k])
        name = f"{self.about.files[self.arrays['file'][k]]}@{self.arrays['row'][k]}"
        return Frame(self[k], self.about.trajectories[number], number not in self.about.undeclared, name)

    def seen_by(self, elements: Sequence[str], cutoff: float, max_neighbours: int | None, name: str) -> Packed:
        """The same structures as a model sees them.

        Raises:
            UserError: elements that the model does not know, or a cutoff above that of the lists. ``name`` is who has them.
        """
        unknown = sorted(set(self.about.elements) - set(elements))
        if unknown:
            raise UserError(
                f"{name} holds {', '.join(unknown)}; model.elements names {', '.join(elements)} only; "
                "add the element there or convert the data without it"
            )
        if cutoff > self.about.cutoff:
            raise UserError(
                f"{name} has neighbours up to {self.about.cutoff:g} Å and the model sees {cutoff:g} Å; "
                f"convert the data again with --cutoff {cutoff:g}"
            )
        return dataclasses.replace(self, cutoff=cutoff, max_neighbours=max_neighbours)

    def with_properties(self, properties: Sequence[PropertyConfig], name: str) -> Packed:
        """The same structures with some of their targets; UserError where one has another shape than the property."""
        for wanted in properties:
            misfit = self.about.misfit(wanted)
            if misfit:
                raise UserError(f"{name}: '{wanted.name}' {misfit}; set kind and of in model.properties")
        return dataclasses.replace(self, properties=tuple(properties))

    def _edges(
        self, chosen: Sequence[int] | NDArray[np.int64], of_atoms: list[slice], cell: NDArray[np.float64], n_edges: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Ends (2, E) and vectors (E, 3) of all edges, structure by structure, which is what a cache can hold."""
        ends, vector = np.empty((2, n_edges), np.int64), np.empty((n_edges, 3))
        start = offset = 0
        for k, own, lattice in zip(chosen, of_atoms, cell, strict=True):
            edges = slice(self.first_edge[k], self.first_edge[k + 1])
            neighbour, degree = self.arrays["neighbour"][edges], self.arrays["degree"][own]
            positions = self.arrays["positions"][own]
            end = start + len(neighbour)
            np.add(neighbour, offset, out=ends[0, start:end])
            ends[1, start:end] = np.arange(offset, offset + len(degree)).repeat(degree)
            here = vector[start:end]
            np.matmul(self.arrays["shift"][edges].astype(np.float64), lattice, out=here)
            here += positions.take(neighbour, axis=0) - positions.repeat(degree, axis=0)
            start, offset = end, offset + len(degree)
        return ends, vector

    def _gather(self, name: str, slices: Sequence[slice]) -> NDArray[Any]:
        array = self.arrays[name]
        return np.concatenate([array[s] for s in slices])


def assembled(index: Index, arrays: Arrays) -> Packed:
    """The structures of some arrays."""
    first = [np.concatenate([[0], np.cumsum(arrays[name], dtype=np.int64)]) for name in ("n_atoms", "n_edges")]
    return Packed(index, arrays, first[0], first[1], index.cutoff)


def index_file(path: Path) -> Path:
    """The file that stands for ``path``: its index where it is a folder of packed structures, else the path itself."""
    return path / INDEX if path.is_dir() and (path / INDEX).is_file() else path


def open_packed(path: Path) -> Packed:
    """Map a folder by its index.

    Raises:
        UserError: it is not one of ours, of another version, or a file in it is missing or cut short.
    """
    existing(path, "the index of packed structures, which `tfdeploy data convert` makes")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] == 1:  # which had numbers of structures only
            content |= {"format": 2, "components": [1] * len(content["targets"]), "of_atoms": []}
        if content["format"] != FORMAT:
            raise UserError(f"{path} is of format {content['format']}, this version reads {FORMAT}; convert the data again")
        lists = {f.name: tuple(content[f.name]) for f in dataclasses.fields(Index) if f.name != "cutoff"}
        index = Index(cutoff=float(content["cutoff"]), **lists)
        counts: dict[str, int] = content["counts"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no index of packed structures; expected what `tfdeploy data convert` makes") from error
    arrays = {}
    for name, (kind, shape) in (LAYOUT | index.target_layout()).items():
        of = index.rows_of(name)
        arrays[name] = _mapped(path.with_name(f"{name}.bin"), np.dtype(kind), (counts[of], *shape))
    return assembled(index, arrays)


def _mapped(path: Path, kind: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    size = kind.itemsize * int(np.prod(shape))
    if existing(path, "a part of packed structures").stat().st_size != size:
        raise UserError(f"{path} has {path.stat().st_size} bytes, expected {size}; convert the data again")
    return np.memmap(path, kind, "r", shape=shape) if size else np.zeros(shape, kind)
