"""Labelled structures from files, checked at the door."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress
from numpy.typing import NDArray
from torch import Tensor

from triforces_deploy.errors import UserError
from triforces_deploy.files import existing
from triforces_deploy.graph import Graph, collate
from triforces_deploy.neighbour_cap import capped
from triforces_deploy.neighbours import graph_from_atoms


class Sample(NamedTuple):
    """One structure, or a batch of them, with its labels; N atoms, G structures."""

    graph: Graph
    energy: Tensor
    """(G,) float64, eV."""
    forces: Tensor
    """(N, 3) float64, eV/Å."""
    stress: Tensor
    """(G, 3, 3) float64, eV/Å³, ASE's sign; NaN where there is no label."""


class Frame(NamedTuple):
    """A sample and where it comes from."""

    sample: Sample
    trajectory: str
    """The path of configurations that it belongs to: frames of one trajectory are never split."""
    declared: bool
    """Whether the file names the trajectory; otherwise it is file name and chemical formula."""
    name: str
    """File and frame in ASE's notation, ``file@index``, counted from 0."""


def join(samples: Sequence[Sample]) -> Sample:
    """Samples side by side as one batch."""
    return Sample(
        graph=collate([s.graph for s in samples]),
        energy=torch.cat([s.energy for s in samples]),
        forces=torch.cat([s.forces for s in samples]),
        stress=torch.cat([s.stress for s in samples]),
    )


def read_frames(
    paths: Sequence[Path], elements: Sequence[str], cutoff: float, max_neighbours: int | None = None
) -> list[Frame]:
    """Read and check every labelled structure of some files.

    Args:
        paths: extended XYZ, or ASE databases (``.db``, ``.json``).
        elements: symbols that the model knows.
        cutoff: Å, for the neighbour lists, which are built here once.
        max_neighbours: what the model sees of them; see neighbour_cap.py.

    Raises:
        UserError: a file that is missing, empty or unreadable; a structure without energy or forces, with labels that are
            not finite, with an element outside the model, with overlapping atoms or an impossible cell. Names the frame.
    """
    frames: list[Frame] = []
    for path in paths:
        n_before = len(frames)
        for k, atoms, trajectory in entries(existing(path, "labelled structures (extxyz or an ASE database)")):
            name = f"{path}@{k}"
            declared = trajectory is not None
            group = trajectory if trajectory is not None else f"{path.name}:{atoms.get_chemical_formula()}"
            sample = _sample(atoms, elements, cutoff, name)
            sample = sample._replace(graph=capped(sample.graph, max_neighbours))
            frames.append(Frame(sample, group, declared, name))
        if len(frames) == n_before:
            raise UserError(f"{path} holds no structures; expected at least one with energy and forces")
    return frames


def entries(path: Path) -> Iterator[tuple[int, Atoms, str | None]]:
    """Index, structure and declared trajectory of each entry of a file; UserError where it cannot be read."""
    rows = _database(path) if path.suffix in (".db", ".json") else _extxyz(path)
    k = 0
    while True:
        try:
            atoms, trajectory = next(rows)
        except StopIteration:
            return
        except Exception as error:  # parsers raise whatever they stumble on
            raise UserError(
                f"{path}@{k} cannot be read ({type(error).__name__}: {_first_line(error)}); "
                "expected extxyz or an ASE database, not cut short"
            ) from error
        yield k, atoms, None if trajectory is None else str(trajectory)
        k += 1


def _extxyz(path: Path) -> Iterator[tuple[Atoms, object]]:
    from ase.io import iread

    if path.stat().st_size == 0:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ASE renames keys aloud; what we need is checked below
        for atoms in iread(path, index=":", format="extxyz"):
            yield atoms, atoms.info.get("trajectory")


def _database(path: Path) -> Iterator[tuple[Atoms, object]]:
    from ase.db import connect

    with connect(path) as database:
        for row in database.select():
            yield row.toatoms(), row.key_value_pairs.get("trajectory")


def _sample(atoms: Atoms, elements: Sequence[str], cutoff: float, name: str) -> Sample:
    if len(atoms) == 0:
        raise UserError(f"{name} has no atoms; remove the frame")
    unknown = sorted(set(atoms.get_chemical_symbols()) - set(elements))
    if unknown:
        raise UserError(
            f"{name} holds {', '.join(unknown)}; model.elements names {', '.join(elements)} only; "
            "add the element there or remove the frame"
        )
    labels = {} if atoms.calc is None else atoms.calc.results
    energy = _label(labels, "energy", (), atoms, name)
    forces = _label(labels, "forces", (len(atoms), 3), atoms, name)
    try:
        graph = graph_from_atoms(atoms, cutoff)
    except UserError as error:
        raise UserError(f"{name}: {error}; mend or remove the frame") from error
    return Sample(
        graph=graph,
        energy=torch.from_numpy(energy.reshape(1)),
        forces=torch.from_numpy(forces),
        stress=torch.from_numpy(_stress(labels, atoms, name)[None]),
    )


def _label(labels: dict[str, object], key: str, shape: tuple[int, ...], atoms: Atoms, name: str) -> NDArray[np.float64]:
    if key not in labels:
        here = ", ".join(str(k) for k in (*atoms.info, *atoms.arrays) if k not in ("numbers", "positions")) or "nothing"
        raise UserError(f"{name} has no {key}; expected the label '{key}' (the frame holds: {here}); label it or remove it")
    value = np.array(labels[key], dtype=np.float64)
    if value.shape != shape:
        raise UserError(f"{name}: {key} has shape {value.shape}, expected {shape}; label the frame again")
    if not np.isfinite(value).all():
        raise UserError(f"{name}: {key} holds NaN or infinity; label the frame again or remove it")
    return value


def _stress(labels: dict[str, object], atoms: Atoms, name: str) -> NDArray[np.float64]:
    """(3, 3); NaN without a label, or without a volume, where stress means nothing."""
    if "stress" not in labels or atoms.cell.rank < 3:
        return np.full((3, 3), np.nan)
    value = np.array(labels["stress"], dtype=np.float64)
    if value.shape not in ((6,), (3, 3), (9,)):
        raise UserError(f"{name}: stress has shape {value.shape}, expected 6 or 3×3 numbers; label the frame again")
    if not np.isfinite(value).all():
        raise UserError(f"{name}: stress holds NaN or infinity; leave it out where it is not known")
    full = voigt_6_to_full_3x3_stress(value) if value.shape == (6,) else value.reshape(3, 3)
    return np.asarray(full, dtype=np.float64)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else "no message"
