"""LAMMPS' processes: started together, counted, and ended together.

A launcher puts every rank into a session of its own, and a command may be a script around the real program, so neither the
process group nor the family tree finds them all. A mark in their environment does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from triforces_deploy.errors import UserError

MARK = "TFDEPLOY_RUN"
PATIENCE = {signal.SIGTERM: 2.5, signal.SIGKILL: 1.0}
"""Seconds until the next, harder signal."""
SETTLED = 2
"""How many looks in a row a process must be there, or be gone, to count as a rank, or as a lost one."""


def program(name: str, option: str) -> str:
    """A program beside this Python, or on the PATH.

    Raises:
        UserError: it is nowhere.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if os.access(beside, os.X_OK) and beside.is_file() else shutil.which(name)
    if found is None:
        raise UserError(f"no program '{name}' beside {sys.executable} or on the PATH; say where it is with {option}")
    return found


class Processes:
    """One start of LAMMPS."""

    def __init__(self, command: Sequence[str], folder: Path, screen: Path, lock: int, rank_program: str) -> None:
        self.screen = screen
        self._mark = f"{MARK}={uuid.uuid4().hex}"
        name, value = self._mark.split("=")
        try:
            with screen.open("wb") as stream:
                self._main = subprocess.Popen(
                    command,
                    cwd=folder,
                    env={**os.environ, name: value},
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    pass_fds=(lock,),
                    start_new_session=True,  # ^C in the terminal is for us; we end LAMMPS
                )
        except OSError as error:
            raise UserError(f"cannot start {command[0]}: {error.strerror}; say where it is with --lmp or --launcher") from error
        self._name = os.path.basename(rank_program)[:15]  # what the system keeps of a name
        self._seen: dict[int, int] = {}
        self._gone: dict[int, int] = {}

    def ended(self, timeout: float) -> int | None:
        """The exit code; None when ``timeout`` seconds have passed before."""
        try:
            return self._main.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def lost(self) -> int | None:
        """Process id of a rank that has gone while others have not; call it about once a second."""
        names = {pid: _name(pid) for pid in self._members()}
        here = {pid for pid, name in names.items() if name == self._name}
        for pid in names.keys() - here:  # a program that a rank has started; it bore the rank's name for a moment
            self._seen.pop(pid, None)
        for pid in here:
            self._seen[pid] = self._seen.get(pid, 0) + 1
            self._gone.pop(pid, None)
        for pid, times in self._seen.items():
            if pid not in here and times >= SETTLED:
                self._gone[pid] = self._gone.get(pid, 0) + 1
        return next((pid for pid, times in self._gone.items() if times >= SETTLED), None) if here else None

    def end(self) -> None:
        """End all of them, whatever is left of them; done within seconds."""
        for number, seconds in PATIENCE.items():
            for pid in (*self._members(), *((self._main.pid,) if self._main.poll() is None else ())):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            limit = time.monotonic() + seconds
            while time.monotonic() < limit:
                if self._main.poll() is not None and not self._members():
                    return
                time.sleep(0.05)

    def _members(self) -> list[int]:
        mark = self._mark.encode()
        return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdecimal() and mark in _environment(p)]


def _environment(process: Path) -> list[bytes]:
    try:
        return (process / "environ").read_bytes().split(b"\0")
    except OSError:  # ended, or another user's
        return []


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
