"""``tfdeploy data convert``: files of any known format into one folder of packed structures; a table says what was left out."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from rich.table import Table

from triforces_deploy.errors import UserError
from triforces_deploy.files import existing, replacing_folder, sha256_of
from triforces_deploy.neighbours import check_geometry
from triforces_deploy.training.packing import Labels, Packer
from triforces_deploy.training.reading import labels_of, not_finite
from triforces_deploy.training.sources.table import SOURCES, read_records, source_of


@dataclasses.dataclass(frozen=True)
class Limits:
    """What is taken for a mistake."""

    nearest: float = 0.4
    """Å. Atoms closer than this; no bond is shorter."""
    force: float = 100.0
    """eV/Å. The largest force on an atom."""


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """Structures with one kind of fault."""

    why: str
    structures: int
    first: str
    """``file@index``."""


@dataclasses.dataclass(frozen=True)
class Converted:
    """What was written."""

    out: Path
    structures: int
    atoms: int
    edges: int
    trajectories: int
    bytes: int
    cutoff: float
    """Å, of the neighbour lists."""
    without: dict[str, int]
    """Structures that were kept and lack a label."""
    left_out: tuple[LeftOut, ...]
    formats: dict[str, dict[str, float]]
    """What the labels of each format were multiplied by."""
    doubts: tuple[str, ...] = ()
    """What of that nobody has verified."""


def convert(
    paths: Sequence[Path],
    out: Path,
    cutoff: float,
    limits: Limits,
    kind: str | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Converted:
    """Pack files; nothing is held in memory but a fingerprint of 16 bytes per structure.

    A structure that is left out is counted with its reason. One that repeats the elements, positions and cell of an earlier
    one, to 1e-5 Å, is left out too, whatever its labels say.

    Args:
        paths: files, or folders of which every file is taken, in the order of their names.
        out: a new folder.
        cutoff: Å, for the neighbour lists; models with a smaller one can use them.
        limits: what is a mistake.
        kind: the format, where the endings do not tell it; a key of ``SOURCES``.
        report: hears of progress.

    Raises:
        UserError: a file that cannot be read, nothing left to write, ``out`` that exists.
    """
    if not cutoff > 0 or not limits.nearest > 0 or not limits.force > 0:
        raise UserError("cutoff, nearest and largest force: expected numbers above 0")
    files = [file for path in paths for file in _files(path)]
    tally = _Tally()
    with replacing_folder(out) as folder:
        with Packer(cutoff, folder) as packer:
            for file in files:
                _pack(file, kind, packer, limits, tally, report)
            if packer.counts["structures"] == 0:
                raise UserError(f"no structure is left to write; {tally.line()}")
            sources = {s.name: s for s in (source_of(f, kind) for f in files)}
            formats = {name: {"energy": s.energy, "stress": s.stress} for name, s in sources.items()}
            packer.write_index(
                {
                    "sha256 of the files": {str(f): sha256_of(f) for f in files},
                    "labels multiplied by": formats,
                    "limits": dataclasses.asdict(limits),
                    "left out": [dataclasses.asdict(row) for row in tally.rows()],
                }
            )
        size = sum(file.stat().st_size for file in folder.iterdir())
    return Converted(
        out=out, structures=packer.counts["structures"], atoms=packer.counts["atoms"], edges=packer.counts["edges"],
        trajectories=packer.n_trajectories, bytes=size, cutoff=cutoff, without=tally.without, left_out=tally.rows(),
        formats=formats, doubts=tuple(f"{s.what}: {s.doubt}" for s in sources.values() if s.doubt),
    )  # fmt: skip


def converted_tables(result: Converted) -> list[Table]:
    """For the terminal."""
    kept = Table(title=f"{result.out}", show_header=False, title_justify="left")
    for name in ("structures", "atoms", "edges", "trajectories"):
        kept.add_row(name, f"{vars(result)[name]:,}")
    kept.add_row("size", f"{result.bytes / 1e6:,.1f} MB")
    kept.add_row("neighbours up to", f"{result.cutoff:g} Å")
    for label, n in result.without.items():
        kept.add_row(f"without {label}", f"{n:,}")
    for name, factors in result.formats.items():
        kept.add_row(SOURCES[name].what, f"energy × {factors['energy']:.6g} eV, stress × {factors['stress']:.6g} eV/Å³")
    for doubt in result.doubts:
        kept.add_row("not verified", doubt)
    if not result.left_out:
        return [kept]
    out = Table("why", "structures", "first", title="Left out", title_justify="left")
    for row in result.left_out:
        out.add_row(row.why, f"{row.structures:,}", row.first)
    return [kept, out]


class _Tally:
    """Counts what is left out, and what lacks a label."""

    def __init__(self) -> None:
        self.without = {"energy": 0, "forces": 0, "stress": 0}
        self._counts: dict[str, int] = {}
        self._first: dict[str, str] = {}
        self._seen: set[bytes] = set()

    def leave_out(self, why: str, name: str) -> None:
        self._counts[why] = self._counts.get(why, 0) + 1
        self._first.setdefault(why, name)

    def repeats(self, atoms: Atoms) -> bool:
        """Whether the same structure was asked about before."""
        digest = hashlib.blake2b(digest_size=16)
        for array in (atoms.positions, atoms.cell.array):
            digest.update(np.round(array * 1e5).astype(np.int64).tobytes())
        digest.update(atoms.numbers.tobytes() + atoms.pbc.tobytes())
        key = digest.digest()
        known = key in self._seen
        self._seen.add(key)
        return known

    def keep(self, labels: Labels) -> None:
        for label in self.without:
            self.without[label] += bool(np.isnan(vars(labels)[label]).any())

    def rows(self) -> tuple[LeftOut, ...]:
        return tuple(LeftOut(why, n, self._first[why]) for why, n in self._counts.items())

    def line(self) -> str:
        found = "; ".join(f"{row.why}: {row.structures}, first {row.first}" for row in self.rows())
        return found or "the files hold none"


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith(".") and not p.name.endswith("-lock"))
        if not found:
            raise UserError(f"{path} is an empty folder; expected files of structures")
        yield from found
    else:
        yield existing(path, "structures in one of the formats " + ", ".join(SOURCES))


def _pack(file: Path, kind: str | None, packer: Packer, limits: Limits, tally: _Tally, report: Callable[[str], None]) -> None:
    for k, record in read_records(file, kind):
        if k % 1000 == 0:
            report(f"{file.name}: {k:,} structures")
        atoms, name = record.atoms, f"{file}@{k}"
        why = _fault(atoms, limits)
        if why is not None:
            tally.leave_out(why, name)
            continue
        if tally.repeats(atoms):
            tally.leave_out("repeats an earlier structure", name)
            continue
        misfit = packer.misfit(record)
        if misfit:
            tally.leave_out(misfit, name)
            continue
        labels = labels_of(atoms, name)
        try:
            packer.add(record, labels, file, k, limits.nearest)
        except UserError:  # the one that is left after _fault
            tally.leave_out(f"atoms closer than {limits.nearest:g} Å", name)
            continue
        tally.keep(labels)


def _fault(atoms: Atoms, limits: Limits) -> str | None:
    """What is wrong with a structure, apart from its distances."""
    if len(atoms) == 0:
        return "no atoms"
    if not (atoms.numbers.min() > 0 and atoms.numbers.max() < 119):
        return "an unknown element"
    wrong = not_finite(atoms)
    if wrong:
        return f"{wrong[0]} is NaN or infinite"
    forces = {} if atoms.calc is None else atoms.calc.results
    if "forces" in forces and np.linalg.norm(forces["forces"], axis=-1).max() > limits.force:
        return f"a force above {limits.force:g} eV/Å"
    try:
        check_geometry(atoms)
    except UserError:
        return "no neighbour list: positions or cell are not finite, or a periodic cell has no volume"
    return None
