"""How much memory there is for an evaluation, how much one takes, and which form of a model therefore runs."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from triforces_deploy.errors import UserError

VARIABLE = "TFDEPLOY_MEMORY"
UNKNOWN = 8 * 2**30
"""Taken to be free where the system does not tell."""


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes that an evaluation takes at its peak, beside the weights and what it takes for one atom too."""

    per_edge: float
    per_atom: float

    def bytes(self, atoms: float, edges: float) -> float:
        """For so many atoms, ghosts included, and edges."""
        return self.per_atom * atoms + self.per_edge * edges


class Memory:
    """The memory of one potential.

    Args:
        whole: need of the compiled form; None where there is none or it does not tell.
        blocked: finds out the need of the eager model in blocks that keep nothing; None where there is no such model.
    """

    def __init__(self, whole: Need | None = None, blocked: Callable[[], Need] | None = None) -> None:
        self.whole = whole
        self.blocked = None if blocked is None else cache(blocked)
        self._limit: int | None = None
        self._agree: Callable[[bool], bool] = bool

    def limit(self) -> int:
        """Bytes that an evaluation may take. Found out once: later, what this very process keeps would count as taken."""
        if self._limit is None:
            self._limit = limit()
        return self._limit

    def share(self, processes: int, agree: Callable[[bool], bool]) -> None:
        """Divide the memory between the processes of one machine, before any of them has evaluated.

        Args:
            processes: how many evaluate at the same time.
            agree: whether something holds on every one of those that share a structure; all of them call. They must run
                the same form, because forms need not exchange the features of ghost atoms in the same order.
        """
        if self._limit is None:
            self._limit = limit(processes)
        self._agree = agree

    def fits(self, atoms: int, edges: int) -> bool:
        """Whether the compiled form fits, here and on all other ranks; one that does not tell always does."""
        return self.whole is None or self._agree(self.whole.bytes(atoms, edges) <= self.limit())


def limit(processes: int = 1) -> int:
    """Bytes that each of so many processes may take: ``TFDEPLOY_MEMORY`` (e.g. 4GiB), or its part of half of what is free."""
    text = os.environ.get(VARIABLE)
    if text is None:
        return available() // (2 * processes)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMG]i?)?B?", text)
    if match is None:
        raise UserError(f"{VARIABLE}={text}: expected a size such as 4GiB or 500MiB")
    unit = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "ki": 2**10, "Mi": 2**20, "Gi": 2**30}[match[2] or ""]
    return int(float(match[1]) * unit)


def available(
    meminfo: Path = Path("/proc/meminfo"), own: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")
) -> int:
    """Bytes that are free: of the machine, and of every control group above this process (containers, batch jobs)."""
    match = re.search(r"MemAvailable:\s+(\d+) kB", _text(meminfo))
    rests = [int(match[1]) * 1024] if match else []
    return max(0, min([*rests, *_rests(own, groups)], default=UNKNOWN))


def _rests(own: Path, groups: Path) -> Iterator[int]:
    """What the limit of each control group leaves; version 2 and version 1."""
    for line in _text(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, names = groups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top, names = groups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        here = top / path.lstrip("/")  # not there inside a container, whose own group is then the top
        for folder in (here, *here.parents[: len(here.parts) - len(top.parts)]):
            most, used = _text(folder / names[0]).strip(), _text(folder / names[1]).strip()
            if most.isdigit() and used.isdigit():
                cached = re.search(rf"^{names[2]} (\d+)$", _text(folder / "memory.stat"), flags=re.MULTILINE)
                yield int(most) - int(used) + (int(cached[1]) if cached else 0)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
