"""The fit of a model to labels: energies, forces and stresses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from triforces_deploy.graph import Graph
from triforces_deploy.model import Model
from triforces_deploy.training.compiled import CompiledPredict
from triforces_deploy.training.data import MOST, Part
from triforces_deploy.training.importance import importance
from triforces_deploy.training.labelled import Labelled
from triforces_deploy.training.normalising import fit_references, fit_scale, less_repulsion
from triforces_deploy.training.objective import Metrics, Prediction, Tally, known, losses, predict
from triforces_deploy.training.recipe import Recipe
from triforces_deploy.training.structures import Sample
from triforces_deploy.training.transfer import adjust_references, zero_of

MOST_EVALUATED = 1024
"""Structures from which references are adjusted to a head that was taken over."""


class Supervised(Labelled):
    """Fits energies, forces and stresses; what is trained is the model itself.

    Raises:
        UserError: bad data, or nothing to train or to validate on.
    """

    validation_columns: tuple[str, ...] = (
        "val_energy_mae", "val_energy_rmse", "val_forces_mae", "val_forces_rmse", "val_stress_mae", "val_stress_rmse",
    )  # fmt: skip
    """In meV/atom, meV/Å, meV/Å³."""

    def __init__(self, plan: Recipe) -> None:
        super().__init__(plan)
        # Parts in eV/atom, eV/Å, eV/Å³ (squared for 'mse').
        self._compiled = CompiledPredict() if plan.trainer.compile else None
        self.weights = {"loss_energy": plan.loss.energy, "loss_forces": plan.loss.forces, "loss_stress": plan.loss.stress}

    def fit_to_labels(self, model: Model) -> None:
        if "heads" in self.plan.init.taken():
            adjust_references(model, self.data.train.chunks(MOST_EVALUATED))
        else:
            # In MACE's form the scale multiplies the repulsion too, so that it is that of both.
            of_both = model.config.zbl_form == "mace"
            train = self.data.train
            model.scale.copy_(fit_scale(train.chunks(MOST) if of_both else self._network_labels(model, train)))
            model.references.copy_(fit_references(self._network_labels(model, train)))
        if self.old is not None:
            self.stream.shift = self._shift(model, self.old)

    def _network_labels(self, model: Model, part: Part) -> Iterator[Sample]:
        samples = part.chunks(MOST)
        return less_repulsion(samples, model.repulsion) if model.zbl is not None else samples

    def _shift(self, model: Model, old: Part) -> Tensor:
        """What brings the energies of old structures to the zero of the new ones: a head that was taken over knows both."""
        if "heads" in self.plan.init.taken():
            return -zero_of(model, old.chunks(MOST_EVALUATED))
        return model.references - fit_references(self._network_labels(model, old))

    def batches(self, steps: range, rank: int = 0, ranks: int = 1) -> Iterator[Sample]:
        found = super().batches(steps, rank, ranks)
        return found if self.plan.loss.importance is None else self._weighted(found, steps, rank, ranks)

    def _weighted(self, found: Iterator[Sample], steps: range, rank: int, ranks: int) -> Iterator[Sample]:
        """The batches with the importance of their atoms."""
        config, train = self.plan.loss.importance, self.stream.part
        assert config is not None
        for step, sample in zip(steps, found, strict=True):
            members = train.members[self.stream.chosen(step)[rank::ranks]].tolist()
            weights = [importance(train.packs[pack].atoms(k), config) for pack, k in members]
            yield sample._replace(weights=torch.from_numpy(np.concatenate(weights)))

    def losses(self, learner: nn.Module, batch: Sample) -> dict[str, Tensor]:
        _, *parts = losses(self._predict(learner, batch.graph), batch, self.plan.loss)
        return dict(zip(self.weights, parts, strict=True))

    def _predict(self, learner: nn.Module, graph: Graph) -> Prediction:
        return predict(learner, graph, create_graph=True) if self._compiled is None else self._compiled(learner, graph)

    def counts(self, batch: Sample) -> dict[str, float]:
        return dict(zip(self.weights, known(batch), strict=True))

    def judge(self) -> EnergyJudge:
        return EnergyJudge(self.plan)

    def figures(self, record: dict[str, Any]) -> Metrics:
        return Metrics(**record)


@dataclasses.dataclass
class EnergyJudge:
    """The score is the weighted loss, each part a mean over the structures that have the label."""

    plan: Recipe
    tally: Tally = dataclasses.field(default_factory=Tally)
    sums: list[float] = dataclasses.field(default_factory=lambda: [0.0] * 3)
    seen: list[float] = dataclasses.field(default_factory=lambda: [0.0] * 3)

    def add(self, learner: nn.Module, batch: Sample) -> None:
        self.count(predict(learner, batch.graph), batch)

    def count(self, prediction: Prediction, batch: Sample) -> None:
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
