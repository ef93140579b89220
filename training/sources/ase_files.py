"""What ASE reads itself: extended XYZ, its databases, and the LMDB databases of OMat24 and OMol25."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

from ase.db.row import AtomsRow

from triforces_deploy.errors import UserError

from .base import Record


def extxyz(path: Path) -> Iterator[Record]:
    """Extended XYZ, or whatever else of text ASE takes for it."""
    from ase.io import iread

    if path.stat().st_size == 0:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ASE renames keys aloud; what we need is checked later
        for atoms in iread(path, index=":", format="extxyz"):
            yield Record(atoms, _text(atoms.info.get("trajectory")))


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
