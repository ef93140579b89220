"""What ASE reads itself: extended XYZ, its databases, and the LMDB databases of OMat24 and OMol25."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.db.row import AtomsRow
from ase.outputs import all_outputs
from numpy.typing import NDArray

from triforces_deploy.errors import UserError
from triforces_deploy.properties import FORBIDDEN

from .base import Record

NO_TARGETS = {"numbers", "positions", "energy", "free_energy", "forces", "stress", "trajectory"}
"""What is the structure itself, or a label of its own."""


def extxyz(path: Path) -> Iterator[Record]:
    """Extended XYZ, or whatever else of text ASE takes for it."""
    from ase.io import iread

    if path.stat().st_size == 0:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ASE renames keys aloud; what we need is checked later
        for atoms in iread(path, index=":", format="extxyz"):
            yield Record(atoms, _text(atoms.info.get("trajectory")), *_targets(atoms))


def _targets(atoms: Atoms) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
    """What else the file says in 1, 3 or 9 numbers of the structure, and of each atom.

    ASE takes what it knows by name, such as dipole and charges, for results of a calculator.
    """
    results = {} if atoms.calc is None else atoms.calc.results
    per_atom = {k: v for k, v in results.items() if all_outputs[k].shapespec[:1] == ("natoms",)}
    whole = {k: v for k, v in results.items() if k not in per_atom}
    return (
        _numbers({**atoms.info, **whole}, ((), (1,), (3,), (9,), (3, 3))),
        _numbers({**atoms.arrays, **per_atom}, tuple((len(atoms), *shape) for shape in ((), (1,), (3,), (9,), (3, 3)))),
    )


def _numbers(found: Mapping[str, object], shapes: Collection[tuple[int, ...]]) -> dict[str, NDArray[np.float64]]:
    arrays = {name: np.asarray(value) for name, value in found.items() if name not in NO_TARGETS and not FORBIDDEN & set(name)}
    return {k: a.astype(np.float64) for k, a in arrays.items() if a.dtype.kind in "iuf" and a.shape in shapes}


def database(path: Path) -> Iterator[Record]:
    """ASE's SQLite and JSON databases."""
    from ase.db import connect

    with connect(path) as rows:
        for row in rows.select():
            yield _of_row(row)


def lmdb_database(path: Path) -> Iterator[Record]:
    """ASE's rows in LMDB, opened so that nothing is locked or written."""
    try:
        from ase_db_backends.aselmdb import LMDBDatabase
    except ImportError as error:
        raise UserError(f"{path} needs the package ase-db-backends; install triforces-deploy[data]") from error
    rows = LMDBDatabase(path, readonly=True)
    try:
        for row in rows.select():
            yield _of_row(row)
    finally:
        rows.close()


def _of_row(row: AtomsRow) -> Record:
    targets = {k: float(v) for k, v in row.key_value_pairs.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return Record(row.toatoms(), _text(row.key_value_pairs.get("trajectory")), targets)


def _text(value: object) -> str | None:
    return None if value is None else str(value)
