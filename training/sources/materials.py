"""Collections of crystals: LeMat-Bulk in Parquet, MPtrj and MatBench in JSON with pymatgen's structures."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from ase import Atoms

from triforces_deploy.errors import UserError

from .base import Record, labelled

_COLUMNS = (
    "immutable_id", "lattice_vectors", "species_at_sites", "cartesian_site_positions", "dimension_types", "energy", "forces",
    "stress_tensor",
)  # fmt: skip


def lemat(path: Path) -> Iterator[Record]:
    """Rows of a Parquet file, a thousand at a time."""
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UserError(f"{path} needs the package pyarrow; install triforces-deploy[data]") from error
    with ParquetFile(path) as file:
        columns = [name for name in _COLUMNS if name in file.schema_arrow.names]
        for rows in file.iter_batches(batch_size=1000, columns=columns):
            for row in rows.to_pylist():
                yield _of_lemat(row)


def _of_lemat(row: dict[str, Any]) -> Record:
    periodic = row.get("dimension_types") or (1, 1, 1)
    atoms = Atoms(
        row["species_at_sites"], row["cartesian_site_positions"], cell=row["lattice_vectors"], pbc=[bool(p) for p in periodic]
    )
    # A material that was computed without them has an empty list.
    labels = {"energy": row.get("energy"), "forces": row.get("forces") or None, "stress": row.get("stress_tensor") or None}
    return Record(labelled(atoms, **labels), row.get("immutable_id"))


def mptrj(path: Path) -> Iterator[Record]:
    """One material at a time: {material: {frame: {structure, uncorrected_total_energy, force, stress, …}}}.

    The energy is DFT's own, whose derivative the forces are, not the one that is corrected for phase diagrams.
    """
    with _opened(path) as stream:
        for material, frames in _ijson(path).kvitems(stream, "", use_float=True):
            for frame in frames.values():
                labels = {"energy": frame.get("uncorrected_total_energy"), "forces": frame.get("force")}
                atoms = labelled(_of_pymatgen(frame["structure"]), **labels, stress=frame.get("stress"))
                gap = frame.get("bandgap")
                yield Record(atoms, material, {} if gap is None else {"bandgap": float(gap)})


def matbench(path: Path) -> Iterator[Record]:
    """A table of one task, {columns: [structure, property], data: [[…], …]}; the property is a target of that name.

    Truth values are 1 and 0.
    """
    with _opened(path) as stream:
        columns = list(_ijson(path).items(stream, "columns.item"))
    if "structure" not in columns:
        raise UserError(f"{path} has no structures (columns: {', '.join(columns)}); tasks of compositions alone cannot be used")
    where, names = columns.index("structure"), [c for c in columns if c != "structure"]
    task = path.name.split(".")[0].removeprefix("matbench_")
    with _opened(path) as stream:
        for k, row in enumerate(_ijson(path).items(stream, "data.item", use_float=True)):
            targets = {name: float(row[columns.index(name)]) for name in names}
            yield Record(_of_pymatgen(row[where]), f"mb-{task}-{k + 1}", targets)


def _of_pymatgen(structure: dict[str, Any]) -> Atoms:
    lattice, sites = structure["lattice"], structure["sites"]
    if any(len(site["species"]) != 1 or site["species"][0]["occu"] != 1 for site in sites):
        raise ValueError("a site with partial occupation has no one element")
    return Atoms(
        [site["species"][0]["element"] for site in sites],
        scaled_positions=[site["abc"] for site in sites],
        cell=lattice["matrix"],
        pbc=lattice.get("pbc", True),
    )


def _opened(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path) if path.suffix == ".gz" else path.open("rb"))


def _ijson(path: Path) -> Any:
    """The package that reads JSON piece by piece."""
    try:
        import ijson
    except ImportError as error:
        raise UserError(f"{path} needs the package ijson; install triforces-deploy[data]") from error
    return ijson
