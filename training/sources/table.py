"""The one list of formats, with units and signs, and which of them a file is."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

from ase import units

from triforces_deploy.errors import UserError

from . import ase_files, materials, molecules
from .base import Record, Source

KBAR = 0.1 * units.GPa
KCAL = units.kcal / units.mol

LEMAT_DOUBT = (
    "stress is taken for kbar with VASP's sign, which holds for rows from the Materials Project and OQMD; those from "
    "Alexandria are copied from a field whose unit is not stated: compare a few, or leave stress out of the loss"
)

SOURCES = {
    source.name: source
    for source in (
        Source("extxyz", "extended XYZ", ase_files.extxyz),
        Source("ase", "ASE database, SQLite or JSON", ase_files.database),
        Source("aselmdb", "ASE database in LMDB: OMat24, OMol25", ase_files.lmdb_database),
        Source("lemat", "LeMat-Bulk and LeMat-Traj, Parquet", materials.lemat, stress=-KBAR, doubt=LEMAT_DOUBT),
        Source("mptrj", "MPtrj, JSON", materials.mptrj, stress=-KBAR),
        Source("matbench", "a task of MatBench, JSON: structures and a property", materials.matbench),
        Source("qm9", "QM9, qm9_v3.pt; read whole", molecules.qm9),
        Source("md17", "MD17 and revised MD17, npz; read whole", molecules.md17, energy=KCAL),
    )
}
"""Where the units of stresses come from, looked up in November 2026:

- aselmdb: OMat24's page in fairchem's documentation says eV, eV/Å and eV/Å³; the rows are ASE's, with its sign and order
  (fairchem issue 923).
- mptrj: the data set's page (figshare 23713842) says kBar. VASP prints it positive under compression, and CHGNet's loader
  turns it into GPa of ASE's sign by −0.1 (chgnet issue 228).
- lemat: no statement of a unit was found. The program that fills the sets (lematerial-fetcher) copies numbers as they are: from
  tasks of the Materials Project, which are VASP's; from OQMD's table of structures, which qmpy reads off VASP's line "in kB";
  and from Alexandria's field ``_alexandria_stress_tensor``, of which nothing was found. Hence the doubt.
"""

_SUFFIXES = {".db": "ase", ".aselmdb": "aselmdb", ".parquet": "lemat", ".pt": "qm9", ".npz": "md17"}


def source_of(path: Path, name: str | None = None) -> Source:
    """The format of a file by its ending and, for JSON, its first bytes; or the one that is named."""
    if name is None:
        plain = path.with_suffix("") if path.suffix == ".gz" else path
        name = _json_kind(path) if plain.suffix == ".json" else _SUFFIXES.get(plain.suffix, "extxyz")
    if name not in SOURCES:
        raise UserError(f"unknown format '{name}'; known: {', '.join(SOURCES)}")
    return SOURCES[name]


def read_records(path: Path, name: str | None = None) -> Iterator[tuple[int, Record]]:
    """Index, from 0, and content of every structure of a file, in eV and Å; UserError where it cannot be read."""
    source = source_of(path, name)
    records = source.records(path)
    k = 0
    while True:
        try:
            record = next(records)
        except StopIteration:
            return
        except UserError:
            raise
        except Exception as error:  # parsers raise whatever they stumble on
            said = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
            raise UserError(
                f"{path}@{k} cannot be read ({type(error).__name__}: {said}); expected {source.what}, not cut short; "
                "another format must be named"
            ) from error
        yield k, record
        k += 1


def _json_kind(path: Path) -> str:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
        start = stream.read(200)
    if re.match(rb'\s*\{\s*"(columns|index|data)"', start):
        return "matbench"
    return "mptrj" if re.match(rb'\s*\{\s*"(?!ids|nextid)[^"]*[^"0-9][^"]*"\s*:\s*\{', start) else "ase"
