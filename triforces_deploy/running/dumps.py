"""Dump files cut at a step, so that a run that goes on from there writes every frame once."""

from __future__ import annotations

import mmap
import os
import re
from pathlib import Path

from triforces_deploy.running.script import Dump

FRAME = re.compile(rb"ITEM: TIMESTEP\n(\d+)\n|Atoms\. Timestep: (\d+)")
MARKS = (b"ITEM: TIMESTEP\n", b" Atoms. Timestep: ")
"""Of styles custom and atom; of style xyz, whose frames begin one line earlier."""


def missing(dump: Dump, step: int) -> str | None:
    """What a run that goes on from ``step`` would leave out of a dump; None when nothing.

    The last frame before ``step`` must be whole, and be the one that was due.
    """
    if "*" in dump.path.name or not dump.path.is_file():
        return None
    with _Frames(dump.path) as frames:
        start, last = frames.before(step)
        if last is None:
            return f"frames of {dump.path.name} before step {step}" if frames.size and step > dump.every else None
        if last < (step - 1) // dump.every * dump.every or not frames.whole(start, frames.first_from(step)):
            return f"frames of {dump.path.name} between steps {last} and {step}"
    return None


def cut(dump: Dump, step: int) -> None:
    """Take frames at and after ``step`` off a dump; the run writes them again."""
    if "*" in dump.path.name:
        _remove_files(dump.path, step)
    elif dump.path.is_file():
        with _Frames(dump.path) as frames:
            end = frames.first_from(step)
        os.truncate(dump.path, end)


def remove(dump: Dump) -> None:
    """Take a dump away, for a start from the beginning."""
    _remove_files(dump.path, 0) if "*" in dump.path.name else dump.path.unlink(missing_ok=True)


def _remove_files(path: Path, step: int) -> None:
    pattern = re.compile(re.escape(path.name).replace(r"\*", r"(\d+)", 1))
    for file in path.parent.iterdir() if path.parent.is_dir() else ():
        match = pattern.fullmatch(file.name)
        if match and int(match[1]) >= step:
            file.unlink()


class _Frames:
    """The frames of a dump, searched from its end; the file may be larger than the memory."""

    def __init__(self, path: Path) -> None:
        self.size = path.stat().st_size
        with path.open("rb") as stream:
            self.content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if self.size else None

    def __enter__(self) -> _Frames:
        return self

    def __exit__(self, *_: object) -> None:
        if self.content is not None:
            self.content.close()

    def before(self, step: int) -> tuple[int, int | None]:
        """Where the last frame before ``step`` begins, and its step."""
        end = self.size
        while (found := self._last(end)) is not None:
            start, own = found
            if own is not None and own < step:
                return start, own
            end = start
        return 0, None

    def first_from(self, step: int) -> int:
        """Where the first frame at or after ``step`` begins: the end of the file if there is none."""
        end = place = self.size
        while (found := self._last(end)) is not None:
            start, own = found
            if own is not None and own < step:
                break
            end = place = start
        return place

    def whole(self, start: int, end: int) -> bool:
        """Whether the frame that reaches from ``start`` to ``end`` has all its lines."""
        assert self.content is not None
        head = self.content[start : min(end, start + 4096)].split(b"\n")
        xyz = not head[0].startswith(b"ITEM")
        try:
            n_atoms = int(head[0] if xyz else head[3])
        except (IndexError, ValueError):
            return False
        wanted, at = n_atoms + (2 if xyz else 9), start
        while at < end:
            wanted -= self.content[at : min(end, at + (1 << 24))].count(b"\n")
            at += 1 << 24
        return wanted == 0

    def _last(self, end: int) -> tuple[int, int | None] | None:
        """Start and step of the last frame that begins before ``end``; no step where its head is cut off."""
        if self.content is None:
            return None
        place = max(self.content.rfind(mark, 0, end) for mark in MARKS)
        if place < 0:
            return None
        match = FRAME.search(self.content, place, min(self.size, place + 80))
        step = int(match[1] or match[2]) if match else None
        if self.content[place : place + 1] == b" ":  # xyz: the number of atoms stands in the line above
            place = self.content.rfind(b"\n", 0, place - 1) + 1
        return place, step
