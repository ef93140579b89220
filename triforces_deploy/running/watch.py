"""One start of LAMMPS, from its first line to its last, with its restarts noted as they appear."""

from __future__ import annotations

import dataclasses
import signal as signals
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from triforces_deploy.running.logs import Follower, LogReader, plain
from triforces_deploy.running.processes import Processes
from triforces_deploy.running.restarts import Note, note
from triforces_deploy.running.script import Script

LOOK = 0.2
"""Seconds between two looks at the exit code and the signals."""
COUNT = 0.7
"""Seconds between two looks at log, restarts and ranks."""
LAST_WORDS = 2.0
"""Seconds that LAMMPS gets to end by itself after it has printed an error."""


@dataclasses.dataclass(frozen=True)
class Ending:
    """How it ended."""

    code: int
    """Of LAMMPS or its launcher; -N after signal N."""
    error: str
    """In one line; nothing when all is well."""
    signal: int | None = None
    """What asked us to stop."""


class Restarts:
    """Notes the restarts of a run as LAMMPS completes them."""

    def __init__(self, script: Script, log: Path, remember: Callable[[Note], None]) -> None:
        self.script, self.remember = script, remember
        self.before = (log, *(d.path for d in script.dumps))
        self._known = {path: _stamp(path) for path in script.restarts}

    def look(self) -> None:
        """Note what is new."""
        for path in self.script.restarts if not self.script.obstacles else ():
            stamp = _stamp(path)
            if stamp is not None and stamp != self._known[path] and (found := note(path, self.before)):
                self._known[path] = stamp
                self.remember(found)


def watch(
    processes: Processes, follower: Follower, restarts: Restarts, show: Callable[[LogReader], None], asked: Sequence[int]
) -> Ending:
    """Stay with LAMMPS until it ends, or end it: on a signal, when a rank is lost, when it hangs after an error."""
    lost: int | None = None
    failed = counted = 0.0
    try:
        while (code := processes.ended(LOOK)) is None and not asked and lost is None:
            now = time.monotonic()
            if now - counted < COUNT:
                continue
            counted = now
            log = follower.poll()
            show(log)
            restarts.look()
            lost = None if log.complete else processes.lost()  # at the end, one rank leaves before the other
            if log.errors:
                failed = failed or now
                if now - failed > LAST_WORDS:
                    break
    finally:
        processes.end()  # a launcher that was killed, or that lost a rank, leaves others behind
    restarts.look()
    show(follower.poll())
    if asked:
        return Ending(0, "", asked[0])
    return Ending(-1 if code is None else code, _error(code, lost, processes.screen, follower.reader.errors))


def _error(code: int | None, lost: int | None, screen: Path, logged: Sequence[str]) -> str:
    """What went wrong, in the words of LAMMPS where it had any."""
    if code == 0:
        return ""
    lines = [line for line in _tail(screen) if line.strip()]
    errors = [plain(line) for line in lines if line.startswith("ERROR")] or logged
    if errors:
        return errors[-1]
    if lost is not None:
        return f"a rank (process {lost}) was killed from outside; did the memory run out?"
    # A shell adds 128, LAMMPS' own command subtracts from 256, and MPICH's launcher ends with the bare number.
    signal = next((s for s in signals.Signals if code in (-s, 128 + s, 256 - s)), signals.SIGKILL if code == 9 else None)
    if signal is not None:
        return f"LAMMPS was ended by {signal.name}" + ("; did the memory run out?" if signal == signals.SIGKILL else "")
    return f"LAMMPS ended with code {code}" + (f": {lines[-1].strip()}" if lines else "")


def _tail(path: Path) -> list[str]:
    if not path.is_file():
        return []
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - 65536))
        return stream.read().decode(errors="replace").splitlines()


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    return state.st_mtime_ns, state.st_size
