"""The fit of a model to properties other than energies: of structures or atoms, scalars, vectors or tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from triforces_deploy.model import Model
from triforces_deploy.property_config import PropertyConfig
from triforces_deploy.training.classification import CLASS_COLUMNS, ClassError, ClassTally
from triforces_deploy.training.data import MOST, Part
from triforces_deploy.training.labelled import Labelled
from triforces_deploy.training.property_labels import labelled, mean_and_spread, property_loss
from triforces_deploy.training.recipe import Recipe
from triforces_deploy.training.structures import Sample


@dataclasses.dataclass(frozen=True)
class PropertyError:
    """Errors of one property in the units of the data, over all components of everything that is labelled."""

    labels: int
    """Structures or atoms."""
    mae: float
    rmse: float
    r2: float
    """1 − Σ error² / Σ (label − mean label)², the mean being that of each component; NaN where all labels are alike."""

    def line(self, name: str) -> str:
        """For a person."""
        return f"MAE {name} {self.mae:.4g} (R² {self.r2:.3f})"

    def row(self, name: str) -> dict[str, float]:
        """The errors by their columns in the log."""
        return {f"val_{name}_mae": self.mae, f"val_{name}_rmse": self.rmse}


@dataclasses.dataclass(frozen=True)
class PropertyMetrics:
    """Errors by the name of the property."""

    structures: int
    errors: dict[str, PropertyError | ClassError]

    def line(self) -> str:
        """One figure of each, for a person."""
        return ", ".join(e.line(name) for name, e in self.errors.items())

    def row(self) -> dict[str, float]:
        """Errors by their columns in the log."""
        return {column: value for name, e in self.errors.items() for column, value in e.row(name).items()}


class _ErrorTally:
    """Adds up errors batch by batch, in float64."""

    def __init__(self, components: int) -> None:
        self._sums = torch.zeros(5, components, dtype=torch.float64)

    def add(self, label: Tensor, found: Tensor) -> None:
        """Count (R, K) of both."""
        label = label.cpu()
        error = found.cpu() - label
        terms = (torch.ones_like(label), error.abs(), error.square(), label, label.square())
        self._sums += torch.stack([term.sum(0) for term in terms])

    def error(self) -> PropertyError:
        """Of everything added so far; NaN of what has no labels."""
        n, absolute, square, label, label2 = self._sums
        around = (label2 - label.square() / n).sum()
        labels = int(n[0])
        r2 = 1 - square.sum() / around if labels and float(around) > 1e-12 * float(label2.sum()) else around * torch.nan
        mae, rmse = absolute.sum() / n.sum(), (square.sum() / n.sum()).sqrt()
        return PropertyError(labels, float(mae), float(rmse), float(r2))


class PropertyTally:
    """Counts what is labelled, property by property."""

    def __init__(self, properties: Iterable[PropertyConfig]) -> None:
        self._tallies = {p.name: ClassTally() if p.kind == "binary" else _ErrorTally(p.components()) for p in properties}
        self._structures = 0

    def add(self, found: dict[str, Tensor], sample: Sample) -> None:
        """Count one batch: (R, K) of each property."""
        self._structures += len(sample.energy)
        for name, tally in self._tallies.items():
            known = labelled(sample.targets[name])
            tally.add(sample.targets[name][known], found[name].detach()[known])

    def metrics(self) -> PropertyMetrics:
        """Of everything added so far; NaN of what has no labels."""
        return PropertyMetrics(self._structures, {name: tally.error() for name, tally in self._tallies.items()})


class PropertyLosses:
    """What a fit of properties does beside those of energies, or alone.

    Args:
        plan: its model has properties.
    """

    def __init__(self, plan: Recipe) -> None:
        self.plan, self.wanted = plan, plan.model.properties
        self.weights = {f"loss_{p.name}": float(plan.loss.properties.get(p.name, 1.0)) for p in self.wanted}
        figures = {"binary": CLASS_COLUMNS}
        self.columns = tuple(f"val_{p.name}_{of}" for p in self.wanted for of in figures.get(p.kind, ("mae", "rmse")))
        self.scales: dict[str, float] = {}

    def fit_to_labels(self, model: Model, train: Part) -> None:
        """Set means and spreads of the heads, where they are new; UserError where a property has no labels."""
        heads = model.properties
        assert heads is not None
        if "heads" not in self.plan.init.taken():
            for k, wanted in enumerate(self.wanted):
                heads.mean[k], heads.spread[k] = mean_and_spread(wanted, train.chunks(MOST))
        self.scales = {p.name: float(s) for p, s in zip(self.wanted, heads.spread, strict=True)}

    def losses(self, found: dict[str, Tensor], batch: Sample) -> dict[str, Tensor]:
        """ℓ of each property, by the names of ``weights``."""
        return {
            f"loss_{p.name}": property_loss(p, found[p.name], batch, self.scales[p.name], self.plan.loss) for p in self.wanted
        }

    def counts(self, batch: Sample) -> dict[str, float]:
        """What has each label."""
        return {f"loss_{p.name}": float(labelled(batch.targets[p.name]).sum()) for p in self.wanted}

    def figures(self, record: dict[str, Any]) -> PropertyMetrics:
        """Those that ``as_dict`` made a record of."""
        kinds = {p.name: ClassError if p.kind == "binary" else PropertyError for p in self.wanted}
        return PropertyMetrics(record["structures"], {name: kinds[name](**v) for name, v in record["errors"].items()})


class PropertyFit(Labelled):
    """Fits the properties of the model, and nothing else of it.

    Raises:
        UserError: bad data, a property without labels, or nothing to train or to validate on.
    """

    def __init__(self, plan: Recipe) -> None:
        super().__init__(plan)
        self.of_properties = PropertyLosses(plan)
        self.weights, self.validation_columns = self.of_properties.weights, self.of_properties.columns

    def fit_to_labels(self, model: Model) -> None:
        self.of_properties.fit_to_labels(model, self.data.train)

    def losses(self, learner: nn.Module, batch: Sample) -> dict[str, Tensor]:
        return self.of_properties.losses(network(learner).properties_of(batch.graph), batch)

    def counts(self, batch: Sample) -> dict[str, float]:
        return self.of_properties.counts(batch)

    def judge(self) -> PropertyJudge:
        return PropertyJudge(self.of_properties)

    def figures(self, record: dict[str, Any]) -> PropertyMetrics:
        return self.of_properties.figures(record)


class PropertyJudge:
    """The score is the weighted loss, each part a mean over what has the label."""

    def __init__(self, of_properties: PropertyLosses) -> None:
        self.of_properties, self.tally = of_properties, PropertyTally(of_properties.wanted)
        self.sums, self.seen = dict.fromkeys(of_properties.weights, 0.0), dict.fromkeys(of_properties.weights, 0.0)

    @torch.no_grad()
    def add(self, learner: nn.Module, batch: Sample) -> None:
        """Count one batch."""
        self.count(network(learner).properties_of(batch.graph), batch)

    def count(self, found: dict[str, Tensor], batch: Sample) -> None:
        """Count what a model says of one batch."""
        self.tally.add(found, batch)
        parts = self.of_properties.losses(found, batch)
        for name, n in self.of_properties.counts(batch).items():
            self.sums[name] += n * float(parts[name].detach())
            self.seen[name] += n

    def verdict(self) -> tuple[float, PropertyMetrics]:
        """Score and figures."""
        weights = self.of_properties.weights
        score = sum(weight * self.sums[name] / max(1.0, self.seen[name]) for name, weight in weights.items())
        return score, self.tally.metrics()


def network(learner: nn.Module) -> Model:
    """What a fit to labels trains is a model itself."""
    assert isinstance(learner, Model)
    return learner
