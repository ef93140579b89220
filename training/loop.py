"""``train``: a recipe and data in, a folder with the best and the last checkpoint out."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from triforces_deploy.allocator import keep_freed_memory
from triforces_deploy.config import as_dict
from triforces_deploy.errors import UserError
from triforces_deploy.stopping import watched_signals
from triforces_deploy.training.fit import Fit, Watcher
from triforces_deploy.training.joint import JointFit
from triforces_deploy.training.loggers import Logger, start
from triforces_deploy.training.pretraining import Pretraining
from triforces_deploy.training.progress import Bar
from triforces_deploy.training.properties import PropertyFit
from triforces_deploy.training.ranks import new_fabric, quiet, refuse_others
from triforces_deploy.training.recipe import Recipe
from triforces_deploy.training.run_folder import RunFolder, identity
from triforces_deploy.training.supervised import Supervised
from triforces_deploy.training.task import Figures, Task
from triforces_deploy.training.transfer import settled


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """How a call of :func:`train` ended."""

    status: Literal["finished", "out of time", "interrupted"]
    step: int
    steps: int
    best: Path
    """Checkpoint of the averaged weights that scored best in validation; not there before the first validation."""
    last: Path
    metrics: Figures | None
    """Validation of ``best``; None before the first."""
    seconds: float
    """Of this call, from the first step on."""
    signal: int | None = None
    """What interrupted it; the exit status should be 128 more."""
    main: bool = True
    """False in the processes that take part and write nothing."""

    def line(self) -> str:
        """The end in one line."""
        if self.status == "finished":
            return f"finished {self.steps} steps; best checkpoint {self.best}"
        why = "time is up" if self.status == "out of time" else "interrupted"
        return f"{why} after step {self.step} of {self.steps}; the same command goes on from here"


def train(plan: Recipe, out: Path, *, resume: bool = True, progress: bool = True) -> TrainResult:
    """Fit a model, or go on with a fit that was stopped.

    ^C and SIGTERM end it after the step at hand with the state saved; ``kill -9`` loses the steps since the last state.
    On a CPU, going on gives the very weights and log that an undisturbed run gives.

    Args:
        plan: what :func:`~triforces_deploy.training.recipe.load_recipe` gives.
        out: folder of the run; gets recipe.yaml, about.json, split.json, log.csv, curves.png, best.ckpt, last.ckpt, state.ckpt
            and a folder for each other logger.
        resume: go on from ``out`` where it holds the same run; otherwise start anew and replace what is there.
        progress: show a bar and a line per validation, on standard error.

    Raises:
        UserError: bad data, a folder with another run, a full disk, a loss that is not a number.
    """
    if plan.trainer.threads is not None:
        torch.set_num_threads(plan.trainer.threads)
    fabric = new_fabric(plan.trainer)
    if fabric.device.type == "cpu":
        keep_freed_memory()
    plan.model.refuse_frozen()
    if plan.model.uncertainty:
        raise UserError(
            "model.uncertainty is made by `tfdeploy uncertainty` of a trained checkpoint; leave it out of the recipe"
        )
    task = _task(plan)
    with watched_signals() as asked, quiet():
        fabric.launch()  # the other processes run the same command from its start
        folder = RunFolder(out, task, fabric)
        state = folder.load_state() if resume else None
        refuse_others(fabric, identity(task), state["fit"]["step"] if state else 0)
        recorder = _Recorder(folder, task, Bar(plan.trainer.steps, progress and fabric.is_global_zero))
        watcher: _Recorder | _Helper = recorder if fabric.is_global_zero else _Helper(folder)
        fit = Fit(fabric, task, watcher, lambda: asked[0] if asked else 0, recorder.late)
        recorder.fit = watcher.fit = fit
        fabric.barrier()  # no state is removed that another process has yet to read
        if state is not None:
            recorder.restore(state, fabric.is_global_zero)
        elif fabric.is_global_zero:
            folder.begin()
        return _run(fit, recorder)


def _task(plan: Recipe) -> Task[Any]:
    fitted = None if plan.objective is not None else plan.model.properties
    plan = dataclasses.replace(plan, init=settled(plan.init, fitted))
    if plan.objective is not None:
        return Pretraining(plan)
    if plan.loss.joint:
        return JointFit(plan)
    return PropertyFit(plan) if plan.model.properties else Supervised(plan)


def _run(fit: Fit, recorder: _Recorder) -> TrainResult:
    signal_number = 0
    steps, main = fit.recipe.trainer.steps, fit.fabric.is_global_zero
    if fit.step < steps:
        with recorder.bar:
            recorder.begin()
            try:
                signal_number = fit.run()
            finally:
                recorder.close()
            if signal_number:
                fit.watcher.save()
            if main:
                recorder.folder.draw()
    fit.fabric.barrier()  # who ends first would be taken for dead
    status = "interrupted" if signal_number else "finished" if fit.step >= steps else "out of time"
    return TrainResult(
        status=cast(Literal["finished", "out of time", "interrupted"], status),
        step=fit.step,
        steps=steps,
        best=recorder.folder.best,
        last=recorder.folder.last,
        metrics=recorder.best_metrics,
        seconds=recorder.seconds(),
        signal=signal_number or None,
        main=main,
    )


class _Recorder(Watcher):
    """Writes what happens to the run folder and keeps the clock."""

    fit: Fit

    def __init__(self, folder: RunFolder, task: Task[Any], bar: Bar) -> None:
        self.folder, self.task, self.bar = folder, task, bar
        self.best_score = float("inf")
        self.best_metrics: Figures | None = None
        self._sums, self._count, self._lr = [0.0] * len(task.training_columns), 0, 0.0
        self._started: float | None = None
        self._loggers: list[Logger] = []

    def restore(self, state: dict[str, Any], main: bool) -> None:
        """Stand where an earlier call stood, log included, which only the main process touches."""
        self.fit.restore(state["fit"])
        self.best_score = state["best_score"]
        self.best_metrics = self.task.figures(state["best_metrics"]) if state["best_metrics"] else None
        self._sums, self._count, self._lr = state["sums"], state["count"], state["lr"]
        if main:
            self.folder.rewind(self.fit.step)

    def begin(self) -> None:
        """Start the clock."""
        self._started = time.monotonic()
        if self.fit.fabric.is_global_zero:
            plan = self.task.plan
            self._loggers = start(plan.trainer.loggers, self.folder.folder, self.fit.step, as_dict(plan))
        self.bar.start(self.fit.step, self.task.greeting())

    def seconds(self) -> float:
        """Since :meth:`begin`."""
        return 0.0 if self._started is None else time.monotonic() - self._started

    def late(self) -> bool:
        """Whether the plan's time is up."""
        limit = self.task.plan.trainer.max_minutes
        return limit is not None and self.seconds() > 60 * limit

    def close(self) -> None:
        """Let go of the loggers."""
        for logger in self._loggers:
            logger.close()

    def _log(self, row: dict[str, float]) -> None:
        self.folder.append(row)
        for logger in self._loggers:
            logger.row(row)

    def save(self) -> None:
        metrics = as_dict(self.best_metrics) if self.best_metrics else None
        content = {"fit": self.fit.state(), "best_score": self.best_score, "best_metrics": metrics}
        content |= {"sums": self._sums, "count": self._count, "lr": self._lr}
        self.folder.save_state(content)

    def on_step(self, step: int, lr: float, parts: dict[str, Tensor]) -> None:
        trainer = self.task.plan.trainer
        self._sums = [a + float(parts[c]) for a, c in zip(self._sums, self.task.training_columns, strict=True)]
        self._count, self._lr = self._count + 1, lr
        self.bar.step(step, float(parts["loss"]))
        if step % trainer.log_every == 0 or step == trainer.steps:
            means = {c: s / self._count for c, s in zip(self.task.training_columns, self._sums, strict=True)}
            self._log({"step": step, "lr": lr, **means})
            self._sums, self._count = [0.0] * len(self._sums), 0

    def on_validation(self, step: int, score: float, figures: Figures, learner: nn.Module) -> None:
        self._log({"step": step, "lr": self._lr, "val_score": score, **figures.row()})
        model = self.task.model_of(learner)
        if score < self.best_score:
            self.best_score, self.best_metrics = score, figures
            self.folder.save_model(self.folder.best, model, step, figures)
        self.folder.save_model(self.folder.last, model, step, figures)
        self.bar.validated(step, figures)

    def on_lack_of_memory(self, pieces: int) -> None:
        self.bar.say(f"memory ran out: from here on each process takes its share of a batch in {pieces} pieces")

    def on_bad_step(self, step: int, pieces: list[Any]) -> str:
        self.folder.save_batch(step, pieces)
        return f"; {self.folder.state} has the weights before it and {self.folder.bad_batch} its structures"


class _Helper(Watcher):
    """In the processes that are not the main one."""

    fit: Fit

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def save(self) -> None:
        self.fit.state()

    def on_bad_step(self, step: int, pieces: list[Any]) -> str:
        self.folder.save_batch(step, pieces)
        return f"; {self.folder.bad_batch} has its structures"
