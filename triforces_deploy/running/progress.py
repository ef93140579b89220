"""What a person sees while LAMMPS runs, on standard error."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from triforces_deploy.running.logs import LogReader
from triforces_deploy.running.script import Script
from triforces_deploy.running.summary import PICOSECONDS, energy_drift

QUIET = 30.0
"""Seconds between two lines where there is no terminal."""


class Display:
    """A bar on a terminal, a line now and then elsewhere; use it in a ``with`` block."""

    def __init__(self, script: Script, shown: bool) -> None:
        self.script = script
        self.console = Console(stderr=True, quiet=not shown, highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.fields[name]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (shown and self.console.is_terminal),
            transient=True,
        )
        self._task = self._progress.add_task("", total=None, name=script.prefix.name, state="starting")
        self._began: tuple[float, int, float] | None = None
        self._printed = time.monotonic()

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        """A line that stays."""
        self.console.print(line, markup=False)

    def update(self, log: LogReader) -> None:
        """Show where the run is."""
        step = log.step
        if step is None:
            return
        state = f"step {step}" + (f" of {self.script.last_step}" if self.script.last_step else "") + self._figures(log, step)
        self._progress.update(self._task, total=self.script.last_step, completed=step, state=state)
        if not self.console.is_terminal and time.monotonic() - self._printed > QUIET:
            self._printed = time.monotonic()
            self.say(f"{self.script.prefix.name}: {state}")

    def _figures(self, log: LogReader, step: int) -> str:
        table, words = log.tables[-1], []
        times, temperatures = table.column("Time"), table.column("Temp")
        if times:
            now = time.monotonic()
            if self._began is None or step < self._began[1]:  # the steps of a minimisation are counted anew after it
                self._began = (now, step, times[-1])
            began, since, simulated = self._began
            if step > since:
                picoseconds = (times[-1] - simulated) * PICOSECONDS.get(self.script.units, 0.0)
                words.append(f"{picoseconds / 1000 / (now - began) * 86400:.3g} ns/day" if picoseconds else "")
                words.append(self._remaining((now - began) / (step - since), step))
        if temperatures:
            words.append(f"{temperatures[-1]:.0f} K")
        slope = energy_drift(table, self.script.units, log.atoms)
        words.append("" if slope is None else f"drift {slope:.2g} meV/atom/ps")
        return "".join(f", {word}" for word in words if word)

    def _remaining(self, seconds_per_step: float, step: int) -> str:
        if self.script.last_step is None or self.console.is_terminal:  # the bar has a column of its own
            return ""
        seconds = int(seconds_per_step * max(self.script.last_step - step, 0))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left"
