"""What a person sees while a fit runs."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from triforces_deploy.training.task import Figures


class Bar:
    """A bar of steps where the output is a terminal, and a line per validation everywhere; use it in a ``with`` block."""

    def __init__(self, steps: int, shown: bool) -> None:
        self.console = Console(stderr=True, quiet=not shown)
        self.steps = steps
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]:.3g}"),
            console=self.console,
            disable=not (shown and self.console.is_terminal),
            transient=True,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def start(self, step: int, lines: Sequence[str]) -> None:
        """Say what is about to happen."""
        self._task = self._progress.add_task("", total=self.steps, completed=step, loss=float("nan"))
        start = f"going on after step {step}" if step else "starting"
        for line in (f"{start}: {lines[0]}", *lines[1:]):
            self.console.print(line, soft_wrap=True)

    def step(self, step: int, loss: float) -> None:
        """One optimiser step is done."""
        if self._task is not None:
            self._progress.update(self._task, completed=step, loss=loss)

    def validated(self, step: int, figures: Figures) -> None:
        """A validation is done."""
        self.console.print(f"step {step:>{len(str(self.steps))}}: {figures.line()}", highlight=False, soft_wrap=True)

    def say(self, line: str) -> None:
        """Something that a person should know."""
        self.console.print(line, highlight=False, soft_wrap=True)
