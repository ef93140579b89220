"""Structures from files, checked at the door: whoever trains on a frame must be able to trust it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress
from numpy.typing import NDArray

from triforces_deploy.errors import UserError
from triforces_deploy.files import existing
from triforces_deploy.nn.scratch import VARIABLE
from triforces_deploy.property_config import PropertyConfig
from triforces_deploy.training.packed import Packed, index_file, open_packed
from triforces_deploy.training.packed_index import INDEX
from triforces_deploy.training.packing import Labels, Packer
from triforces_deploy.training.sources.base import Record
from triforces_deploy.training.sources.table import read_records
from triforces_deploy.training.structures import Frame

OVERLAPS = 1.0
"""Å. Neighbours looked for where nothing but atoms on top of each other matters."""


def read_packed(
    paths: Sequence[Path],
    elements: Sequence[str],
    cutoff: float,
    max_neighbours: int | None = None,
    properties: Sequence[PropertyConfig] = (),
) -> list[Packed]:
    """The structures of some files, each file for itself.

    Folders that ``tfdeploy data convert`` made are mapped, and hold what was found good then. Other files are read and
    checked now, every structure, and their neighbour lists are made.

    Args:
        paths: folders of packed structures or their indexes, or files of any format in sources/table.py.
        elements: symbols that the model knows.
        cutoff: Å.
        max_neighbours: what the model sees of the neighbours; see neighbour_cap.py.
        properties: what the samples carry besides; then no energy and no forces are asked for.

    Raises:
        UserError: a file that is missing, empty or unreadable; a property that no file has, or that has another shape;
            a structure without energy or forces, with labels that are
            not finite, with an element outside the model, with overlapping atoms or an impossible cell. Names the frame.
    """
    found = []
    for path in map(index_file, paths):
        here = open_packed(path) if path.name == INDEX else _read(path, elements, cutoff, not properties)
        found.append(here.seen_by(elements, cutoff, max_neighbours, str(path)).with_properties(properties, str(path)))
    known = sorted({name for packed in found for name in packed.about.targets})
    for wanted in properties:
        if found and wanted.name not in known:
            listed = ", ".join(known) or "none"
            raise UserError(f"no file has the property '{wanted.name}' of model.properties; they have: {listed}")
    return found


def read_frames(
    paths: Sequence[Path],
    elements: Sequence[str],
    cutoff: float,
    max_neighbours: int | None = None,
    properties: Sequence[PropertyConfig] = (),
) -> list[Frame]:
    """The same as a list of frames, all of them in memory."""
    packs = read_packed(paths, elements, cutoff, max_neighbours, properties)
    return [packed.frame(k) for packed in packs for k in range(len(packed))]


def _read(path: Path, elements: Sequence[str], cutoff: float, needs_labels: bool) -> Packed:
    packer = Packer(cutoff)
    for k, record in read_records(existing(path, "labelled structures (extxyz, an ASE database, or packed)")):
        name = f"{path}@{k}"
        _check(record.atoms, elements, name, needs_labels)
        if packer.misfit(record):
            raise UserError(f"{name}: {packer.misfit(record)}; mend or remove the frame")
        labels = labels_of(record.atoms, name)
        try:
            packer.add(record, labels, path, k)
        except UserError as error:
            raise UserError(f"{name}: {error}; mend or remove the frame") from error
    if packer.counts["structures"] == 0:
        raise UserError(f"{path} holds no structures; expected at least one with energy and forces")
    return packer.packed()


def read_structures(paths: Sequence[Path], elements: Sequence[str], cutoff: float | None) -> list[Packed]:
    """The same without labels, each file for itself, for those who make graphs of their own; memory does not grow with them.

    Folders that ``tfdeploy data convert`` made are mapped. Other files are read and checked now, every structure, into a
    folder of ``TFDEPLOY_SCRATCH``, or where temporary files go, that has lost its name when this returns.

    Args:
        paths: as above.
        elements: symbols that the model knows.
        cutoff: Å, that neighbour lists must reach; None where nobody needs any.

    Raises:
        UserError: as above, apart from labels; a disk without room.
    """
    found = []
    for path in map(index_file, paths):
        here = open_packed(path) if path.name == INDEX else _aside(path, elements, OVERLAPS if cutoff is None else cutoff)
        found.append(here.seen_by(elements, here.about.cutoff if cutoff is None else cutoff, None, str(path)))
    return found


def _aside(path: Path, elements: Sequence[str], cutoff: float) -> Packed:
    where = os.environ.get(VARIABLE, tempfile.gettempdir())
    try:
        with (
            tempfile.TemporaryDirectory(prefix="tfdeploy-", dir=where, ignore_cleanup_errors=True) as name,
            Packer(cutoff, Path(name)) as packer,
        ):
            for k, record in read_records(existing(path, "structures, labelled or not")):
                _add_unlabelled(packer, Record(record.atoms, record.trajectory), elements, path, k)
            if packer.counts["structures"] == 0:
                raise UserError(f"{path} holds no structures; expected at least one")
            packer.write_index({})
            return open_packed(Path(name) / INDEX)  # what is mapped outlives its name
    except OSError as error:
        raise UserError(
            f"cannot keep the structures of {path} in {where}: {error.strerror or error}; set {VARIABLE} to a folder with "
            "room, or convert them (`tfdeploy data convert`)"
        ) from error


def _add_unlabelled(packer: Packer, record: Record, elements: Sequence[str], path: Path, k: int) -> None:
    atoms = record.atoms
    atoms.calc = None
    _check(atoms, elements, f"{path}@{k}", needs_labels=False)
    unknown = Labels(float("nan"), np.full((len(atoms), 3), np.nan), np.full((3, 3), np.nan))
    try:
        packer.add(record, unknown, path, k)
    except UserError as error:
        raise UserError(f"{path}@{k}: {error}; mend or remove the frame") from error


def labels_of(atoms: Atoms, name: str) -> Labels:
    """What the calculator of a record says; NaN where it says nothing. UserError where a shape is wrong."""
    results = {} if atoms.calc is None else atoms.calc.results
    energy = _label(results, "energy", ((),), name)
    forces = _label(results, "forces", ((len(atoms), 3),), name)
    # Without a volume a stress means nothing.
    stress = _label(results, "stress", ((6,), (3, 3), (9,)), name) if atoms.cell.rank == 3 else None
    full = voigt_6_to_full_3x3_stress(stress) if stress is not None and stress.shape == (6,) else stress
    return Labels(
        energy=float("nan") if energy is None else float(energy),
        forces=np.full((len(atoms), 3), np.nan) if forces is None else forces,
        stress=np.full((3, 3), np.nan) if full is None else full.reshape(3, 3),
    )


def _label(results: dict[str, object], key: str, shapes: tuple[tuple[int, ...], ...], name: str) -> NDArray[np.float64] | None:
    if key not in results:
        return None
    value = np.array(results[key], dtype=np.float64)
    if value.shape not in shapes:
        expected = "6 or 3×3 numbers" if key == "stress" else shapes[0]
        raise UserError(f"{name}: {key} has shape {value.shape}, expected {expected}; label the frame again")
    return value


def not_finite(atoms: Atoms) -> list[str]:
    """Labels that are there and are no numbers."""
    results = {} if atoms.calc is None else atoms.calc.results
    keys = ("energy", "forces", *(("stress",) if atoms.cell.rank == 3 else ()))
    return [key for key in keys if key in results and not np.isfinite(np.asarray(results[key], float)).all()]


def _check(atoms: Atoms, elements: Sequence[str], name: str, needs_labels: bool) -> None:
    """Refuse what cannot be trained on."""
    if len(atoms) == 0:
        raise UserError(f"{name} has no atoms; remove the frame")
    unknown = sorted(set(atoms.get_chemical_symbols()) - set(elements))
    if unknown:
        raise UserError(
            f"{name} holds {', '.join(unknown)}; model.elements names {', '.join(elements)} only; "
            "add the element there or remove the frame"
        )
    results = {} if atoms.calc is None else atoms.calc.results
    for key in ("energy", "forces") if needs_labels else ():
        if key not in results:
            here = ", ".join(str(k) for k in (*atoms.info, *atoms.arrays) if k not in ("numbers", "positions")) or "nothing"
            raise UserError(f"{name} has no {key}; expected the label '{key}' (the frame holds: {here}); label it or remove it")
    for key in not_finite(atoms):
        mend = "leave it out where it is not known" if key == "stress" else "label the frame again or remove it"
        raise UserError(f"{name}: {key} holds NaN or infinity; {mend}")
