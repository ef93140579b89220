"""``train``: a recipe and data in, a folder with the best and the last checkpoint out."""

from __future__ import annotations

import dataclasses
import logging
import signal
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import lightning
import torch

from triforces_deploy.config import as_dict
from triforces_deploy.errors import UserError
from triforces_deploy.model import Model
from triforces_deploy.stopping import SIGNALS, watched_signals
from triforces_deploy.training.data import MOST, Data, fit_references, fit_scale, less_repulsion, load
from triforces_deploy.training.fit import Fit, Stopped, Watcher
from triforces_deploy.training.objective import Losses, Metrics
from triforces_deploy.training.progress import Bar
from triforces_deploy.training.recipe import Recipe
from triforces_deploy.training.run_folder import VALIDATION_COLUMNS, RunFolder
from triforces_deploy.training.structures import Sample


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """How a call of :func:`train` ended."""

    status: Literal["finished", "out of time", "interrupted"]
    step: int
    steps: int
    best: Path
    """Checkpoint of the averaged weights that scored best in validation; not there before the first validation."""
    last: Path
    metrics: Metrics | None
    """Validation of ``best``; None before the first."""
    seconds: float
    """Of this call, from the first step on."""
    signal: int | None = None
    """What interrupted it; the exit status should be 128 more."""

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
        out: folder of the run; gets recipe.yaml, split.json, log.csv, best.ckpt, last.ckpt and state.ckpt.
        resume: go on from ``out`` where it holds the same run; otherwise start anew and replace what is there.
        progress: show a bar and a line per validation, on standard error.

    Raises:
        UserError: bad data, a folder with another run, a full disk, a loss that is not a number.
    """
    if plan.trainer.threads is not None:
        torch.set_num_threads(plan.trainer.threads)
    accelerator = _accelerator(plan)
    plan.model.refuse_frozen()
    if plan.model.uncertainty:
        raise UserError(
            "model.uncertainty is made by `tfdeploy uncertainty` of a trained checkpoint; leave it out of the recipe"
        )
    found = load(plan.data, plan.model)
    if not found.train or not found.validation:
        raise UserError(
            "no structures to train on or none to validate on; set data.validation above 0 or name validation_files"
        )
    folder = RunFolder(out)
    state = folder.load_state(plan, found) if resume else None
    recorder = _Recorder(folder, plan, found, Bar(plan.trainer.steps, progress))
    with watched_signals() as asked:
        fit = Fit(_new_model(plan, found), plan, found, recorder, lambda: asked[0] if asked else None)
        recorder.fit = fit
        if state is None:
            folder.begin(plan, found)
        else:
            recorder.restore(state)
        return _run(fit, recorder, accelerator)


def _new_model(plan: Recipe, data: Data) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(plan.seed)
        model = Model(plan.model)
    model.set_network_dtype(torch.float32 if plan.trainer.precision == "float32" else torch.float64)
    model.references.copy_(fit_references(_network_labels(plan, data)))
    model.scale.copy_(fit_scale(_network_labels(plan, data)))
    return model


def _network_labels(plan: Recipe, data: Data) -> Iterable[Sample]:
    samples = data.train.chunks(MOST)
    return less_repulsion(samples) if plan.model.zbl else samples


def _run(fit: Fit, recorder: _Recorder, accelerator: str) -> TrainResult:
    signal_number = None
    steps = fit.recipe.trainer.steps
    if fit.step < steps:
        with recorder.bar, _quiet():
            trainer = _trainer(fit.recipe, accelerator)
            recorder.begin()
            try:
                trainer.fit(fit)
            except Stopped as stopped:
                signal_number = int(stopped.args[0])
                recorder.save()
    status = "interrupted" if signal_number is not None else "finished" if fit.step >= steps else "out of time"
    return TrainResult(
        status=cast(Literal["finished", "out of time", "interrupted"], status),
        step=fit.step,
        steps=steps,
        best=recorder.folder.best,
        last=recorder.folder.last,
        metrics=recorder.best_metrics,
        seconds=recorder.seconds(),
        signal=signal_number,
    )


def _trainer(recipe: Recipe, accelerator: str) -> lightning.Trainer:
    """Lightning for the loop, the device and clipping; log, checkpoints and bar are ours."""
    return lightning.Trainer(
        accelerator=accelerator,
        devices=1,
        max_epochs=-1,
        gradient_clip_val=recipe.optimiser.clip,
        callbacks=[_OwnSignals()],
        inference_mode=False,  # validation differentiates too
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _accelerator(plan: Recipe) -> str:
    available = torch.cuda.is_available()
    if plan.trainer.device == "cuda" and not available:
        raise UserError("trainer.device is cuda but torch finds no GPU; set it to auto or cpu")
    return "cuda" if available and plan.trainer.device != "cpu" else "cpu"


class _Recorder(Watcher):
    """Writes what happens to the run folder and keeps the clock."""

    fit: Fit

    def __init__(self, folder: RunFolder, recipe: Recipe, data: Data, bar: Bar) -> None:
        self.folder, self.recipe, self.data, self.bar = folder, recipe, data, bar
        self.best_score = float("inf")
        self.best_metrics: Metrics | None = None
        self._sums, self._count, self._lr = [0.0] * 4, 0, 0.0
        self._started: float | None = None

    def restore(self, state: dict[str, Any]) -> None:
        """Stand where an earlier call stood, log included."""
        self.fit.restore(state["fit"])
        self.best_score = state["best_score"]
        self.best_metrics = Metrics(**state["best_metrics"]) if state["best_metrics"] else None
        self._sums, self._count, self._lr = state["sums"], state["count"], state["lr"]
        self.folder.rewind(self.fit.step)

    def begin(self) -> None:
        """Start the clock."""
        self._started = time.monotonic()
        self.bar.start(
            self.fit.step, len(self.data.train), len(self.data.validation), len(self.data.test), self.data.undeclared
        )

    def seconds(self) -> float:
        """Since :meth:`begin`."""
        return 0.0 if self._started is None else time.monotonic() - self._started

    def save(self) -> None:
        """Write the state."""
        metrics = as_dict(self.best_metrics) if self.best_metrics else None
        content = {"fit": self.fit.state(), "best_score": self.best_score, "best_metrics": metrics}
        content |= {"sums": self._sums, "count": self._count, "lr": self._lr}
        self.folder.save_state(self.recipe, self.data, content)

    def on_step(self, step: int, lr: float, parts: Losses) -> None:
        trainer = self.recipe.trainer
        self._sums = [a + float(b) for a, b in zip(self._sums, parts, strict=True)]
        self._count, self._lr = self._count + 1, lr
        self.bar.step(step, float(parts.total))
        if step % trainer.log_every == 0 or step == trainer.steps:
            total, energy, forces, stress = (s / self._count for s in self._sums)
            row = {"loss": total, "loss_energy": energy, "loss_forces": forces, "loss_stress": stress}
            self.folder.append({"step": step, "lr": lr, **row})
            self._sums, self._count = [0.0] * 4, 0
        if trainer.max_minutes is not None and self.seconds() > 60 * trainer.max_minutes:
            self.fit.out_of_time = True
        if step % trainer.save_every == 0 and not self.fit.at_validation:
            self.save()

    def on_validation(self, step: int, score: float, metrics: Metrics) -> None:
        row = {f"val_{k}": v for k, v in as_dict(metrics).items() if f"val_{k}" in VALIDATION_COLUMNS and v is not None}
        self.folder.append({"step": step, "lr": self._lr, "val_score": score, **row})
        model = cast(Model, self.fit.average.module)
        if score < self.best_score:
            self.best_score, self.best_metrics = score, metrics
            self.folder.save_model(self.folder.best, model, self.recipe, self.data, step, metrics)
        self.folder.save_model(self.folder.last, model, self.recipe, self.data, step, metrics)
        self.save()
        self.bar.validated(step, metrics)


class _OwnSignals(lightning.Callback):
    """Takes signals back from Lightning, which at SIGTERM would leave a validation half way, with nothing saved."""

    def __init__(self) -> None:
        self.handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def on_train_start(self, *_: Any) -> None:
        """Lightning has put its own in place by now; it removes them itself."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self.handlers.items():
                signal.signal(number, handler)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what Lightning says about itself.

    Its advice to use workers does not fit, as the graphs are in memory; and it calls a function that torch deprecates.
    """
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            yield
    finally:
        logger.setLevel(level)
