"""The fit of a model to energies, forces and stresses and to other properties at once."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn

from triforces_deploy.errors import UserError
from triforces_deploy.graph import Graph
from triforces_deploy.model import Model
from triforces_deploy.training.objective import Metrics, Prediction, known, losses, predict
from triforces_deploy.training.properties import PropertyJudge, PropertyLosses, PropertyMetrics, network
from triforces_deploy.training.recipe import Recipe
from triforces_deploy.training.structures import Sample
from triforces_deploy.training.supervised import EnergyJudge, Supervised


@dataclasses.dataclass(frozen=True)
class JointMetrics:
    """Both."""

    energies: Metrics
    properties: PropertyMetrics

    def line(self) -> str:
        """Of both, for a person."""
        return f"{self.energies.line()}; {self.properties.line()}"

    def row(self) -> dict[str, float]:
        """Errors by their columns in the log."""
        return {**self.energies.row(), **self.properties.row()}


class JointFit(Supervised):
    """Fits all that structures are labelled with; one without a label of a kind does not count for it.

    Raises:
        UserError: bad data, no energies or no labels of a property, or nothing to train or to validate on.
    """

    def __init__(self, plan: Recipe) -> None:
        super().__init__(plan)
        self.of_properties = PropertyLosses(plan)
        self.weights = {**self.weights, **self.of_properties.weights}
        self.validation_columns = (*self.validation_columns, *self.of_properties.columns)
        if not any(bool(sample.energy.isfinite().any()) for sample in self.data.train.chunks()):
            raise UserError("no structure to train on has an energy; set loss.joint to false, or add some")

    def provenance(self) -> dict[str, Any]:
        return {**super().provenance(), "fitted": ["energies", "properties"]}

    def fit_to_labels(self, model: Model) -> None:
        super().fit_to_labels(model)
        self.of_properties.fit_to_labels(model, self.data.train)

    def losses(self, learner: nn.Module, batch: Sample) -> dict[str, Tensor]:
        prediction, found = both(learner, batch.graph, create_graph=True)
        _, *parts = losses(prediction, batch, self.plan.loss)
        names = ("loss_energy", "loss_forces", "loss_stress")
        return {**dict(zip(names, parts, strict=True)), **self.of_properties.losses(found, batch)}

    def counts(self, batch: Sample) -> dict[str, float]:
        names = ("loss_energy", "loss_forces", "loss_stress")
        return {**dict(zip(names, known(batch), strict=True)), **self.of_properties.counts(batch)}

    def judge(self) -> _Judge:  # type: ignore[override]
        return _Judge(EnergyJudge(self.plan), PropertyJudge(self.of_properties))

    def figures(self, record: dict[str, Any]) -> JointMetrics:  # type: ignore[override]
        return JointMetrics(Metrics(**record["energies"]), self.of_properties.figures(record["properties"]))


@dataclasses.dataclass
class _Judge:
    """The score is the sum of both."""

    of_energies: EnergyJudge
    of_properties: PropertyJudge

    def add(self, learner: nn.Module, batch: Sample) -> None:
        prediction, found = both(learner, batch.graph)
        self.of_energies.count(prediction, batch)
        self.of_properties.count(found, batch)

    def verdict(self) -> tuple[float, JointMetrics]:
        (one, energies), (other, properties) = self.of_energies.verdict(), self.of_properties.verdict()
        return one + other, JointMetrics(energies, properties)


def both(learner: nn.Module, graph: Graph, create_graph: bool = False) -> tuple[Prediction, dict[str, Tensor]]:
    """What a model says of energies, their derivatives, and properties, from one pass through its streams."""
    model, kept = network(learner), {}

    def energies_of(graph: Graph) -> Tensor:
        energies, found = model.with_properties(graph)
        kept.update(found)
        return energies

    return predict(energies_of, graph, create_graph), kept
