"""One fit as Lightning sees it: steps, validation, and what a killed run needs to go on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, IterableDataset

from triforces_deploy.errors import UserError
from triforces_deploy.training.batches import Stream
from triforces_deploy.training.data import Data
from triforces_deploy.training.objective import Losses, Metrics, Tally, losses, predict
from triforces_deploy.training.recipe import OptimiserConfig, Recipe
from triforces_deploy.training.structures import Sample, join


class Stopped(Exception):  # noqa: N818 - it is a request, not an error
    """Leaves Lightning's loop between two steps; the argument is the signal that asked for it."""


def learning_rate(config: OptimiserConfig, step: int, steps: int) -> float:
    """The rate of a step, counted from 0: up linearly over the warm-up, then down along half a cosine to ``final``."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, steps - config.warmup)
    return config.lr * (config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


class Watcher:
    """What the fit tells the outside; the run folder and the progress bar listen."""

    def on_step(self, step: int, lr: float, parts: Losses) -> None:
        """After each optimiser step; the losses are of its batch."""

    def on_validation(self, step: int, score: float, metrics: Metrics) -> None:
        """After each validation of the averaged weights."""


class Fit(lightning.LightningModule):
    """Trains a model and keeps a moving average of its weights.

    Lightning's epochs are the stretches between validations. Batches are functions of the step, so ``step``, weights,
    average and optimiser are all there is to remember.

    Args:
        model: energies of atoms, differentiable twice.
        recipe: weights of the loss, rates, lengths.
        data: what to train and validate on.
        watcher: listens.
        asked_to_stop: looked at after each step; a signal number ends the run there.
    """

    def __init__(
        self, model: nn.Module, recipe: Recipe, data: Data, watcher: Watcher, asked_to_stop: Callable[[], int | None]
    ) -> None:
        super().__init__()
        self.model = model
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.optimiser.ema))
        self.average.requires_grad_(False)
        self.recipe = recipe
        self.data = data
        self.watcher = watcher
        self.asked_to_stop = asked_to_stop
        self.step = 0
        self.out_of_time = False
        self._optimiser_state: dict[str, Any] | None = None
        self._last: Losses | None = None
        self._tally, self._score, self._seen = Tally(), 0.0, 0

    def state(self) -> dict[str, Any]:
        """All that the rest of the run depends on, as plain containers of tensors."""
        optimiser = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimiser, torch.optim.Optimizer)
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": optimiser.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a state; call it before the fit begins."""
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self._optimiser_state = state["optimiser"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.recipe.optimiser.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimiser = torch.optim.AdamW(groups, lr=self.recipe.optimiser.lr, fused=True)
        if self._optimiser_state is not None:
            optimiser.load_state_dict(self._optimiser_state)
        return optimiser

    def train_dataloader(self) -> DataLoader[Sample]:
        return DataLoader(_Stretch(self), batch_size=None, collate_fn=_itself)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Sample]:
        batch = self.recipe.trainer.batch_size
        return DataLoader(self.data.validation, batch_size=batch, collate_fn=join)  # type: ignore[arg-type]

    def training_step(self, sample: Sample) -> Tensor:
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = learning_rate(self.recipe.optimiser, self.step, self.recipe.trainer.steps)
        parts = losses(predict(self.model, sample.graph, create_graph=True), sample, self.recipe.loss)
        self._last = Losses(*(part.detach() for part in parts))
        return parts.total

    def on_train_batch_end(self, *_: Any) -> None:
        assert self._last is not None
        if not bool(self._last.total.isfinite()):
            raise UserError(f"the loss of step {self.step + 1} is not a number; lower optimiser.lr, or look for absurd labels")
        self.average.update_parameters(self.model)
        lr = learning_rate(self.recipe.optimiser, self.step, self.recipe.trainer.steps)
        self.step += 1
        self.watcher.on_step(self.step, lr, self._last)
        if not self.at_validation:  # which is part of the step, so that a state never stands between the two
            self._stop_if_asked()

    @property
    def at_validation(self) -> bool:
        """Whether a validation follows the step just made."""
        trainer = self.recipe.trainer
        return self.step % trainer.validate_every == 0 or self.step == trainer.steps

    def _stop_if_asked(self) -> None:
        signal = self.asked_to_stop()
        if signal is not None:
            raise Stopped(signal)

    def on_validation_epoch_start(self) -> None:
        self._tally, self._score, self._seen = Tally(), 0.0, 0

    def validation_step(self, sample: Sample) -> None:
        prediction = predict(self.average, sample.graph)
        self._tally.add(prediction, sample)
        n = len(sample.energy)
        self._score += n * float(losses(prediction, sample, self.recipe.loss).total)
        self._seen += n

    def on_validation_epoch_end(self) -> None:
        self.watcher.on_validation(self.step, self._score / self._seen, self._tally.metrics())
        if self.step >= self.recipe.trainer.steps or self.out_of_time:
            self.trainer.should_stop = True
        else:
            self._stop_if_asked()


class _Stretch(IterableDataset[Sample]):
    """The batches from wherever the fit stands to the next validation."""

    def __init__(self, fit: Fit) -> None:
        self.fit = fit

    def __iter__(self) -> Iterator[Sample]:
        recipe, samples = self.fit.recipe, self.fit.data.train
        every = recipe.trainer.validate_every
        start = self.fit.step
        end = min(recipe.trainer.steps, (start // every + 1) * every)
        stream = Stream(samples, recipe.trainer.batch_size, "structures", recipe.seed, recipe.data.rotate)
        for step in range(start, end):
            batch = stream.batch(step)
            assert batch is not None
            yield batch
            if self.fit.out_of_time:
                return


def _itself(sample: Sample) -> Sample:
    return sample
