"""A run to do harm to: started by the command line, waiting for it between two runs of its input."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

MARK = "TFDEPLOY_TEST_RUN"
TFDEPLOY = str(Path(sys.executable).with_name("tfdeploy"))


def _words(state: Path) -> set[str]:
    return {line.strip().rstrip(",") for line in state.read_text().splitlines()}


class Started:
    """``tfdeploy run in.md`` in a folder, once LAMMPS has come to the pause and its restarts are noted."""

    def __init__(self, folder: Path, *options: str, restarts: tuple[int, int] = (800, 1200)) -> None:
        self.folder = folder
        (folder / "pause").touch()
        self.process = subprocess.Popen(
            [TFDEPLOY, "run", "in.md", *options],
            cwd=folder,
            env={**os.environ, MARK: str(folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # what runs in the background ignores it
        )
        limit = time.monotonic() + 200
        noted = folder / "md.run.json"
        while not (folder / "paused").exists() or not {f'"step": {n}' for n in restarts} <= _words(noted):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < limit
            time.sleep(0.05)
        (folder / "pause").unlink()
        (folder / "paused").unlink()

    def pids(self, name: str = "") -> list[int]:
        """All processes of the run; those of one program only."""
        mark = f"{MARK}={self.folder}".encode()
        found = []
        for process in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                ours = process.name.isdecimal() and mark in (process / "environ").read_bytes().split(b"\0")
                if ours and name in (process / "comm").read_text():
                    found.append(int(process.name))
        return sorted(found)

    def kill_all(self) -> None:
        """As the machine would at a power cut, but for the disk."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _held(self) -> bool:
        """Whether a process that is going, and has no environment any more, still has its files open."""
        with (self.folder / "md.run.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def end(self) -> tuple[int, str]:
        """Exit code and what stood on standard error; whatever happens, all of it ends."""
        try:
            _, err = self.process.communicate(timeout=60)
        finally:
            limit = time.monotonic() + 3
            while (left := self.pids() or self._held()) and time.monotonic() < limit:
                time.sleep(0.05)
            self.kill_all()
        assert not left
        return self.process.returncode, err
