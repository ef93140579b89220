"""Running other programs, which may be missing, broken or hang, without being harmed."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

TIMEOUT = 30.0
"""Seconds after which a program counts as hanging."""


@dataclasses.dataclass(frozen=True)
class Ended:
    """A program that has ended, or could not begin."""

    code: int
    """Negative for a signal, 127 where it could not begin."""
    text: str
    """Both outputs."""

    @property
    def failure(self) -> str:
        """Why it ended badly, in one line; empty where it did not."""
        if self.code == 0:
            return ""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        telling = [line for line in lines if "error" in line.lower()] or lines[-1:]
        how = f"killed by {signal.Signals(-self.code).name}" if self.code < 0 else f"exit code {self.code}"
        return f"{how}: {telling[0][:200]}" if telling else how


def ended(command: Sequence[str], files: Mapping[str, str] | None = None) -> Ended:
    """Run a program in a folder of its own that holds ``files``, without input; whatever it starts ends with it."""
    with tempfile.TemporaryDirectory(prefix="tfdeploy-") as folder, open(Path(folder) / "output", "w+b") as output:
        for name, content in (files or {}).items():
            (Path(folder) / name).write_text(content)
        try:
            process = subprocess.Popen(
                list(command),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return Ended(127, f"{command[0]}: {error.strerror}")
        try:
            code = process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return Ended(124, f"{command[0]} did not end within {TIMEOUT:g} s")
        output.seek(0)
        return Ended(code, output.read().decode(errors="replace"))
