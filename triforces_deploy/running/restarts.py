"""Restart files: which step they hold, whether they are whole, and which of them a run goes on from.

LAMMPS writes a restart from one process, front to back, and its trailer last: a file with both ends in place was written to
the end. That it also reached the disk, and has not changed since, is known only of files that were flushed and noted while
the run was watched; after a crash of the machine no others are believed.
"""

from __future__ import annotations

import dataclasses
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from triforces_deploy.files import sha256_of

MAGIC = b"LammpS RestartT\0"
STRINGS, STEP = (0, 4), 5
"""Entries of the header before the step: version and units are texts, the others integers."""


class DamagedError(Exception):
    """A restart that must not be used; says why."""


@dataclasses.dataclass(frozen=True)
class Note:
    """A restart that was complete and on the disk."""

    step: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Restart:
    """A restart that may be used."""

    path: Path
    step: int


def restart_step(path: Path) -> int:
    """The step a restart holds; :class:`DamagedError` when either of its ends is wrong."""
    try:
        with path.open("rb") as stream:
            return _step(stream)
    except FileNotFoundError as error:
        raise DamagedError("is not there") from error
    except (struct.error, ValueError, OSError) as error:
        raise DamagedError("is cut off or no restart") from error


def _step(stream: BinaryIO) -> int:
    if stream.read(len(MAGIC)) != MAGIC:
        raise ValueError("header")
    stream.read(8)  # byte order, revision
    for _ in range(12):
        flag, value = struct.unpack("<ii", stream.read(8))
        if flag == STEP:
            step: int = struct.unpack("<q", struct.pack("<i", value) + stream.read(4))[0]
            break
        if flag in STRINGS:
            stream.seek(value, os.SEEK_CUR)
    else:
        raise ValueError("no step")
    stream.seek(-len(MAGIC), os.SEEK_END)
    if stream.read() != MAGIC:
        raise ValueError("trailer")
    return step


def note(path: Path, others: Iterable[Path]) -> Note | None:
    """Flush a restart, and first whatever was written before it, and note its digest; None while it is being written."""
    try:
        step, before = restart_step(path), path.stat()
        for other in (*others, path):
            _flush(other)
        digest, after = sha256_of(path), path.stat()
    except (DamagedError, FileNotFoundError):
        return None
    return Note(step, digest) if (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size) else None


def _flush(path: Path) -> None:
    if path.is_file():
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)  # of the file, whoever wrote to it
        finally:
            os.close(handle)


def judged(path: Path, notes: Sequence[Note], same_boot: bool) -> Restart:
    """The restart in ``path`` if it can be believed.

    Args:
        path: of the file.
        notes: of this run.
        same_boot: the machine has been up since the file was written.

    Raises:
        DamagedError: it is missing, cut off, changed, or perhaps not on the disk as it was written.
    """
    step = restart_step(path)
    known = [n.sha256 for n in notes if n.step == step]
    if known and sha256_of(path) not in known:
        raise DamagedError(f"has changed since it was written at step {step}")
    if not known and not same_boot:
        raise DamagedError("was perhaps not on the disk when the machine went down")
    return Restart(path, step)
