"""The fit of a model to labels: energies, forces and stresses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from triforces_deploy.config import as_dict
from triforces_deploy.errors import UserError
from triforces_deploy.model import Model
from triforces_deploy.training.batches import Stream, cut
from triforces_deploy.training.data import MOST, elements_seen, fit_references, fit_scale, less_repulsion, load
from triforces_deploy.training.importance import importance
from triforces_deploy.training.objective import Metrics, Tally, known, losses, predict
from triforces_deploy.training.recipe import Recipe
from triforces_deploy.training.structures import Sample
from triforces_deploy.training.task import Task
from triforces_deploy.training.transfer import adjust_references, take_over

MOST_EVALUATED = 1024
"""Structures from which references are adjusted to a head that was taken over."""


class Supervised(Task[Sample]):
    """Fits energies, forces and stresses; what is trained is the model itself.

    Raises:
        UserError: bad data, or nothing to train or to validate on.
    """

    validation_columns = (
        "val_energy_mae", "val_energy_rmse", "val_forces_mae", "val_forces_rmse", "val_stress_mae", "val_stress_rmse",
    )  # fmt: skip
    """In meV/atom, meV/Å, meV/Å³."""

    def __init__(self, plan: Recipe) -> None:
        self.plan = plan
        # Parts in eV/atom, eV/Å, eV/Å³ (squared for 'mse').
        self.weights = {"loss_energy": plan.loss.energy, "loss_forces": plan.loss.forces, "loss_stress": plan.loss.stress}
        self.data = load(plan.data, plan.model)
        self.files = self.data.files
        if not self.data.train or not self.data.validation:
            raise UserError(
                "no structures to train on or none to validate on; set data.validation above 0 or name validation_files"
            )
        self.started_from: dict[str, Any] = {}
        trainer = plan.trainer
        self.stream = Stream(self.data.train, trainer.batch_size, trainer.batch_by, plan.seed, plan.data.rotate)

    def split(self) -> dict[str, Any]:
        return as_dict(self.data.split)

    def provenance(self) -> dict[str, Any]:
        data = self.data
        return {
            **self.started_from,
            "elements": elements_seen(data.train),
            "shortest_distances": data.shortest,
            "frames": {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)},
        }

    def greeting(self) -> list[str]:
        data = self.data
        held_out = f"{len(data.validation)} to validate, {len(data.test)} held out by trajectory"
        lines = [f"{len(data.train)} structures to train on, {held_out}"]
        if data.undeclared:
            lines.append(
                f"note: {data.undeclared} structures name no trajectory; those of one file and formula were kept together"
            )
        return lines

    def new_learner(self) -> Model:
        plan = self.plan
        with torch.random.fork_rng():
            torch.manual_seed(plan.seed)
            model = Model(plan.model)
        model.set_network_dtype(torch.float64 if plan.trainer.precision == "float64" else torch.float32)
        self.started_from = take_over(model, plan.init)
        if "heads" in plan.init.taken():
            adjust_references(model, self.data.train.chunks(MOST_EVALUATED))
            return model
        model.references.copy_(fit_references(self._network_labels()))
        model.scale.copy_(fit_scale(self._network_labels()))
        return model

    def _network_labels(self) -> Iterator[Sample]:
        samples = self.data.train.chunks(MOST)
        return less_repulsion(samples) if self.plan.model.zbl else samples

    def model_of(self, learner: nn.Module) -> Model:
        assert isinstance(learner, Model)
        return learner

    def batches(self, steps: range, rank: int = 0, ranks: int = 1) -> Iterator[Sample]:
        found = self.stream.batches(steps, rank, ranks)
        return found if self.plan.loss.importance is None else self._weighted(found, steps, rank, ranks)

    def _weighted(self, found: Iterator[Sample], steps: range, rank: int, ranks: int) -> Iterator[Sample]:
        """The batches with the importance of their atoms."""
        config, train = self.plan.loss.importance, self.data.train
        assert config is not None
        for step, sample in zip(steps, found, strict=True):
            members = train.members[self.stream.order.batch(step)[rank::ranks]].tolist()
            weights = [importance(train.packs[pack].atoms(k), config) for pack, k in members]
            yield sample._replace(weights=torch.from_numpy(np.concatenate(weights)))

    def losses(self, learner: nn.Module, batch: Sample) -> dict[str, Tensor]:
        _, *parts = losses(predict(learner, batch.graph, create_graph=True), batch, self.plan.loss)
        return dict(zip(self.weights, parts, strict=True))

    def counts(self, batch: Sample) -> dict[str, float]:
        return dict(zip(self.weights, known(batch), strict=True))

    def validation(self) -> Iterator[Sample]:
        trainer, found = self.plan.trainer, self.data.validation
        return (found.batch(chosen) for chosen in cut(found.sizes(trainer.batch_by), trainer.batch_size))

    def judge(self) -> _Judge:
        return _Judge(self.plan)

    def figures(self, record: dict[str, Any]) -> Metrics:
        return Metrics(**record)


@dataclasses.dataclass
class _Judge:
    """The score is the weighted loss, each part a mean over the structures that have the label."""

    plan: Recipe
    tally: Tally = dataclasses.field(default_factory=Tally)
    sums: list[float] = dataclasses.field(default_factory=lambda: [0.0] * 3)
    seen: list[float] = dataclasses.field(default_factory=lambda: [0.0] * 3)

    def add(self, learner: nn.Module, batch: Sample) -> None:
        prediction = predict(learner, batch.graph)
        self.tally.add(prediction, batch)
        _, *parts = losses(prediction, batch, self.plan.loss)
        counts = known(batch)
        self.sums = [s + n * float(part) for s, n, part in zip(self.sums, counts, parts, strict=True)]
        self.seen = [s + n for s, n in zip(self.seen, counts, strict=True)]

    def verdict(self) -> tuple[float, Metrics]:
        loss = self.plan.loss
        means = [s / max(1.0, n) for s, n in zip(self.sums, self.seen, strict=True)]
        score = sum(w * part for w, part in zip((loss.energy, loss.forces, loss.stress), means, strict=True))
        return score, self.tally.metrics()
