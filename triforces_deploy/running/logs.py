"""LAMMPS' logs: read while they grow, and spliced to one where a run was started several times."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from triforces_deploy.files import replacing

LOOP = re.compile(r"Loop time of (\S+) on (\d+) procs for (\d+) steps with (\d+) atoms")


@dataclasses.dataclass
class Table:
    """The thermo lines of one ``run`` or ``minimize``."""

    columns: tuple[str, ...]
    rows: list[tuple[float, ...]] = dataclasses.field(default_factory=list)
    seconds: float | None = None
    """Of the loop; None before its end."""
    steps: int = 0
    """Of the loop."""

    def column(self, *names: str) -> list[float]:
        """The first of ``names`` that is there, else nothing."""
        for name in names:
            if name in self.columns:
                k = self.columns.index(name)
                return [row[k] for row in self.rows]
        return []


@dataclasses.dataclass
class LogReader:
    """What a log has said so far; give it whole lines."""

    tables: list[Table] = dataclasses.field(default_factory=list)
    warnings: dict[str, int] = dataclasses.field(default_factory=dict)
    """Text → how often."""
    errors: list[str] = dataclasses.field(default_factory=list)
    atoms: int | None = None
    open: bool = False
    """Inside a table."""
    complete: bool = False
    """LAMMPS has come to the end of its input."""

    def feed(self, line: str) -> bool:
        """Read a line; returns whether it was one of a table."""
        if self.open and (row := _row(line, len(self.tables[-1].columns))) is not None:
            self.tables[-1].rows.append(row)
            return True
        words = line.split()
        if words[:1] == ["Step"]:
            self.tables.append(Table(tuple(words)))
            self.open = True
        elif match := LOOP.match(line):
            self.open = False
            if self.tables:
                self.tables[-1].seconds, self.tables[-1].steps = float(match[1]), int(match[3])
            self.atoms = int(match[4])
        elif line.startswith("WARNING"):
            text = plain(line.removeprefix("WARNING:"))
            self.warnings[text] = self.warnings.get(text, 0) + 1
        elif line.startswith("ERROR"):
            self.errors.append(plain(line))
        elif line.startswith("Total wall time"):
            self.complete = True
        elif len(words) == 2 and words[1] == "atoms" and words[0].isdecimal():
            self.atoms = int(words[0])
        return False

    @property
    def step(self) -> int | None:
        """Of the last thermo line."""
        return next((int(t.rows[-1][0]) for t in reversed(self.tables) if t.rows), None)


def read_log(path: Path) -> LogReader:
    """A whole log; an empty one if there is no file."""
    return _read(_whole_lines(path))


def _read(lines: Iterable[str]) -> LogReader:
    reader = LogReader()
    for line in lines:
        reader.feed(line)
    return reader


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file; a last one that was cut off could pass for a number, so it is left out."""
    lines = path.read_text(errors="replace").splitlines(keepends=True) if path.is_file() else []
    return lines if not lines or lines[-1].endswith("\n") else lines[:-1]


def plain(line: str) -> str:
    """A message of LAMMPS without the place in its sources."""
    return re.sub(r"\s*\(\S*src/\S+:\d+\)", "", line).strip()


class Follower:
    """Reads what has been added to a growing log."""

    def __init__(self, path: Path) -> None:
        self.path, self.reader = path, LogReader()
        self._at, self._rest = 0, b""

    def poll(self) -> LogReader:
        """Take in the whole lines that are new."""
        if self.path.is_file():
            with self.path.open("rb") as stream:
                stream.seek(self._at)
                *lines, self._rest = (self._rest + stream.read()).split(b"\n")
                self._at = stream.tell()
            for line in lines:
                self.reader.feed(line.decode(errors="replace"))
        return self.reader


def kept(lines: Sequence[str], step: int | None) -> int:
    """How many lines of a log stand before the first thermo line that a start from ``step`` prints again.

    Only the tail counts that belongs to the same course of steps: a ``reset_timestep`` before it ends the search.
    """
    if step is None:
        return 0
    reader = LogReader()
    marks = [(k, int(reader.tables[-1].rows[-1][0])) for k, line in enumerate(lines) if reader.feed(line)]
    end, later = len(lines), None
    for k, own in reversed(marks):
        if own < step or (later is not None and own > later):
            break
        end, later = k, own
    return end


def last_before(path: Path, step: int) -> int | None:
    """The last step before ``step`` in a log that goes on at ``step``; None if there is none."""
    lines = _whole_lines(path)
    return _read(lines[: kept(lines, step)]).step


def splice(parts: Sequence[tuple[Path, int | None]], out: Path) -> None:
    """Write one log as if the run had never been interrupted; it appears only when complete.

    Args:
        parts: LAMMPS' own log of each start, and the step it started from; None for the beginning.
        out: where to.
    """
    whole: list[str] = []
    for path, start in parts:
        lines = _whole_lines(path)
        if start is None:
            whole = lines
        else:
            own = list(_from_first_row(lines))
            whole = whole[: kept(whole, start)] + own if own else whole
    with replacing(out) as part:
        part.write_text("".join(whole))


def _from_first_row(lines: Sequence[str]) -> Iterator[str]:
    reader, started = LogReader(), False
    for line in lines:
        started = reader.feed(line) or started
        if started:
            yield line


def _row(line: str, width: int) -> tuple[float, ...] | None:
    words = line.split()
    if len(words) != width:
        return None
    try:
        return tuple(float(word) for word in words)
    except ValueError:
        return None
