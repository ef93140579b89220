"""The loop: steps, validations, and what a killed run needs to go on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Generic

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from triforces_deploy.errors import UserError
from triforces_deploy.training.parcel import Parcel, unwrapped, wrapped
from triforces_deploy.training.ranks import agree, start_alike
from triforces_deploy.training.recipe import OptimiserConfig
from triforces_deploy.training.sharded import Sharded
from triforces_deploy.training.task import Batch, Figures, Judge, Task
from triforces_deploy.training.transfer import hold_still
from triforces_deploy.training.weights import Replicated, Weights


def learning_rate(config: OptimiserConfig, step: int, steps: int) -> float:
    """The rate of a step, counted from 0: up linearly over the warm-up, then down along half a cosine to ``final``."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, steps - config.warmup)
    return config.lr * (config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


class Watcher:
    """What the fit tells the outside; the run folder and the progress bar listen."""

    def on_step(self, step: int, lr: float, parts: dict[str, Tensor]) -> None:
        """After each optimiser step; the losses are of its batch, the sum first."""

    def on_validation(self, step: int, score: float, figures: Figures, learner: nn.Module) -> None:
        """After each validation of what is learned with its averaged weights."""

    def on_lack_of_memory(self, pieces: int) -> None:
        """The step at hand is tried again in so many pieces, and so are all that follow."""

    def save(self) -> None:
        """Keep the state of the fit, of which every process may hold a part."""

    def on_bad_step(self, step: int, pieces: list[Any]) -> str:  # noqa: ARG002 - for those who save them
        """A step, counted from 1, whose loss or gradient is not a number and that was not made; where things were saved."""
        return ""


class Fit:
    """Trains what a task learns and keeps a moving average of its weights.

    Batches are functions of the step, so ``step``, weights, average and optimiser are all there is to remember. The batch
    of a step is shared among the processes, and each share is cut into pieces; every part of the loss is weighted by what
    it is a mean of, so that the gradient is that of the whole batch, however it was cut.

    Args:
        fabric: device, precision and processes.
        task: what to learn, and the plan for it.
        watcher: listens.
        asked_to_stop: looked at after each step; a signal number ends the run there, 0 does not.
        time_is_up: looked at after each step; the run ends after a validation.
    """

    def __init__(
        self,
        fabric: Fabric,
        task: Task[Any],
        watcher: Watcher,
        asked_to_stop: Callable[[], int],
        time_is_up: Callable[[], bool],
    ) -> None:
        self.fabric, self.task, self.recipe, self.watcher = fabric, task, task.plan, watcher
        self.asked_to_stop, self.time_is_up = asked_to_stop, time_is_up
        self.model = fabric.to_device(task.new_learner())
        start_alike(fabric, self.model)
        hold_still(self.model, task.plan.init, 0)
        shared = fabric.world_size > 1 and self.recipe.trainer.strategy == "sharded"
        self.weights: Weights = (Sharded if shared else Replicated)(fabric, self.model, self.recipe)
        self.step = 0
        self.pieces = self.recipe.trainer.accumulate
        self.signal = 0
        self.out_of_time = False

    def state(self) -> dict[str, Any]:
        """All that the rest of the run depends on, as plain containers of tensors; every process must ask for it."""
        return {"step": self.step, "pieces": self.pieces, **self.weights.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a state; call it before the fit begins."""
        self.step, self.pieces = state["step"], state["pieces"]
        self.weights.restore(state)

    def run(self) -> int:
        """Go on to the last step; 0, or the signal that stopped it between two steps."""
        trainer = self.recipe.trainer
        while self.step < trainer.steps and not self.out_of_time:
            end = min(trainer.steps, (self.step // trainer.validate_every + 1) * trainer.validate_every)
            for pieces in self._batches(end):
                self.training_step(pieces)
                self._agree()
                if self.signal and not self.at_validation:  # which is part of the step: no state stands between the two
                    return self.signal
                if self.out_of_time:
                    break
            self._validate()
            self._agree()
            if self.signal and self.step < trainer.steps and not self.out_of_time:
                return self.signal
        return 0

    @property
    def at_validation(self) -> bool:
        """Whether a validation follows the step just made."""
        trainer = self.recipe.trainer
        return self.step % trainer.validate_every == 0 or self.step == trainer.steps

    def training_step(self, pieces: list[Any]) -> None:
        """One step of the optimiser on this process' share of a batch; where memory runs out, none but smaller pieces."""
        lr = learning_rate(self.recipe.optimiser, self.step, self.recipe.trainer.steps)
        hold_still(self.model, self.recipe.init, self.step)
        self.weights.begin(lr)
        parts, enough = self._gradients(pieces)
        parts, enough = self.weights.sum_gradients(parts, enough)
        if not enough:
            self.pieces *= 2
            self.watcher.on_lack_of_memory(self.pieces)
            return
        loss = self.task.total(dict(zip(self.task.weights, parts, strict=True)))
        norm = self.weights.clip(self.recipe.optimiser.clip)
        if not bool(loss.isfinite() & norm.isfinite()):
            self.watcher.save()
            saved = self.watcher.on_bad_step(self.step + 1, pieces)
            raise UserError(
                f"the loss of step {self.step + 1} is not a number; lower optimiser.lr, or look for absurd labels{saved}"
            )
        self.weights.step()
        self.step += 1
        self.watcher.on_step(self.step, lr, {"loss": loss, **dict(zip(self.task.weights, parts, strict=True))})
        if self.step % self.recipe.trainer.save_every == 0 and not self.at_validation:  # which saves too
            self.watcher.save()

    def validation_step(self, judge: Judge[Any], learner: nn.Module, batch: Any) -> None:
        """Count one batch of a validation."""
        with self.fabric.autocast():
            judge.add(learner, self.fabric.to_device(batch))

    def _gradients(self, pieces: list[Any]) -> tuple[Tensor, bool]:
        """Add up the gradients of the pieces; this process' part of the losses, and whether there was memory enough."""
        names = list(self.task.weights)
        found = [self.task.counts(piece) for piece in pieces]
        counts = torch.tensor([[count[name] for name in names] for count in found], dtype=torch.float64)
        whole = agree(self.fabric, counts.sum(0), "sum")
        shares = self.fabric.to_device(torch.where(whole > 0, counts / whole, 0.0))
        parts = torch.zeros(shares.shape[1], dtype=torch.float64, device=shares.device)
        try:
            for piece, share in zip(pieces, shares, strict=True):
                with self.fabric.autocast():
                    losses = self.task.losses(self.model, self.fabric.to_device(piece))
                own = {name: losses[name] * fraction for name, fraction in zip(names, share, strict=True)}
                self.task.total(own).backward()
                parts += torch.stack([part.detach().to(parts) for part in own.values()])
        except (RuntimeError, MemoryError) as error:  # CUDA's own kind is a RuntimeError
            if not _lacks_memory(error):
                raise
            return torch.zeros_like(parts), False
        return parts, True

    def _batches(self, end: int) -> Iterator[list[Any]]:
        """For each step up to ``end`` the pieces of this process' share."""
        while self.step < end:
            pieces = self.pieces
            for batch in self._loader(_Pieces(self.task, range(self.step, end), self.fabric, pieces)):
                yield batch
                if self.pieces != pieces:
                    break

    def _loader(self, pieces: _Pieces[Any]) -> Iterator[list[Any]]:
        workers = self.recipe.trainer.workers
        found = iter(DataLoader(pieces, batch_size=None, collate_fn=_itself, num_workers=workers))
        return map(unwrapped, found) if workers else found

    def _validate(self) -> None:
        """On every process alike, so that all know the score."""
        judge = self.task.judge()
        with self.weights.averaged() as learner:
            for batch in self.task.validation():
                self.validation_step(judge, learner, batch)
            score, figures = judge.verdict()
            self.watcher.on_validation(self.step, score, figures, learner)
        self.watcher.save()

    def _agree(self) -> None:
        """Stop together: what one process was asked for holds for all."""
        asked = torch.tensor([float(self.asked_to_stop()), float(self.time_is_up())], dtype=torch.float64)
        signal, late = agree(self.fabric, asked, "max").tolist()
        self.signal, self.out_of_time = int(signal), bool(late)


class _Pieces(IterableDataset[list[Batch] | Parcel], Generic[Batch]):
    """The batches of some steps in pieces, which workers wrap; they take turns, step by step, so that the order stays."""

    def __init__(self, task: Task[Batch], steps: range, fabric: Fabric, pieces: int) -> None:
        self.task, self.steps, self.pieces = task, steps, pieces
        self.rank, self.ranks = fabric.global_rank, fabric.world_size

    def __iter__(self) -> Iterator[list[Batch] | Parcel]:
        worker = get_worker_info()
        steps = self.steps if worker is None else self.steps[worker.id :: worker.num_workers]
        shares = range(self.rank, self.ranks * self.pieces, self.ranks)
        for pieces in zip(*(self.task.batches(steps, share, self.ranks * self.pieces) for share in shares), strict=True):
            yield list(pieces) if worker is None else wrapped(list(pieces))


def _itself(pieces: list[Any] | Parcel) -> list[Any] | Parcel:
    return pieces


def _lacks_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
