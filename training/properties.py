"""The fit of a model to properties other than energies: of structures or atoms, scalars, vectors or tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from triforces_deploy.errors import UserError
from triforces_deploy.model import Model
from triforces_deploy.properties import isotropic
from triforces_deploy.property_config import PropertyConfig
from triforces_deploy.training.data import MOST
from triforces_deploy.training.labelled import Labelled
from triforces_deploy.training.objective import penalty
from triforces_deploy.training.recipe import LossConfig, Recipe
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


@dataclasses.dataclass(frozen=True)
class PropertyMetrics:
    """Errors by the name of the property."""

    structures: int
    errors: dict[str, PropertyError]

    def line(self) -> str:
        """Mean absolute errors, for a person."""
        return "MAE " + ", ".join(f"{name} {e.mae:.4g} (R² {e.r2:.3f})" for name, e in self.errors.items())

    def row(self) -> dict[str, float]:
        """Errors by their columns in the log."""
        mae = {f"val_{name}_mae": e.mae for name, e in self.errors.items()}
        return mae | {f"val_{name}_rmse": e.rmse for name, e in self.errors.items()}


class PropertyTally:
    """Adds up errors batch by batch, in float64."""

    def __init__(self, properties: Iterable[PropertyConfig]) -> None:
        self._sums = {p.name: torch.zeros(5, p.components(), dtype=torch.float64) for p in properties}
        self._structures = 0

    def add(self, found: dict[str, Tensor], sample: Sample) -> None:
        """Count one batch: (R, K) of each property."""
        self._structures += len(sample.energy)
        for name, sums in self._sums.items():
            known = _known(sample.targets[name])
            label = sample.targets[name][known].cpu()
            error = found[name].detach()[known].cpu() - label
            terms = (torch.ones_like(label), error.abs(), error.square(), label, label.square())
            sums += torch.stack([term.sum(0) for term in terms])

    def metrics(self) -> PropertyMetrics:
        """Of everything added so far; NaN of what has no labels."""
        errors = {}
        for name, (n, absolute, square, label, label2) in self._sums.items():
            around = (label2 - label.square() / n).sum()
            labels = int(n[0])
            r2 = 1 - square.sum() / around if labels and float(around) > 1e-12 * float(label2.sum()) else around * torch.nan
            mae, rmse = absolute.sum() / n.sum(), (square.sum() / n.sum()).sqrt()
            errors[name] = PropertyError(labels, float(mae), float(rmse), float(r2))
        return PropertyMetrics(self._structures, errors)


class PropertyFit(Labelled):
    """Fits the properties of the model, and nothing else of it.

    Raises:
        UserError: bad data, a property without labels, or nothing to train or to validate on.
    """

    def __init__(self, plan: Recipe) -> None:
        super().__init__(plan)
        self.properties = plan.model.properties
        self.weights = {f"loss_{p.name}": float(plan.loss.properties.get(p.name, 1.0)) for p in self.properties}
        self.validation_columns = tuple(f"val_{p.name}_{of}" for p in self.properties for of in ("mae", "rmse"))
        self.scales: dict[str, float] = {}

    def fit_to_labels(self, model: Model) -> None:
        heads = model.properties
        assert heads is not None
        if "heads" not in self.plan.init.taken():
            for k, wanted in enumerate(self.properties):
                heads.mean[k], heads.spread[k] = mean_and_spread(wanted, self.data.train.chunks(MOST))
        self.scales = {p.name: float(s) for p, s in zip(self.properties, heads.spread, strict=True)}

    def losses(self, learner: nn.Module, batch: Sample) -> dict[str, Tensor]:
        return dict(zip(self.weights, self.parts(learner, batch)[1], strict=True))

    def parts(self, learner: nn.Module, batch: Sample) -> tuple[dict[str, Tensor], list[Tensor]]:
        """What the model says, and ℓ of each property."""
        assert isinstance(learner, Model)
        found = learner.properties_of(batch.graph)
        return found, [property_loss(p, found[p.name], batch, self.scales[p.name], self.plan.loss) for p in self.properties]

    def counts(self, batch: Sample) -> dict[str, float]:
        return {f"loss_{p.name}": float(_known(batch.targets[p.name]).sum()) for p in self.properties}

    def judge(self) -> _Judge:
        return _Judge(self, PropertyTally(self.properties))

    def figures(self, record: dict[str, Any]) -> PropertyMetrics:
        return PropertyMetrics(record["structures"], {k: PropertyError(**v) for k, v in record["errors"].items()})


@dataclasses.dataclass
class _Judge:
    """The score is the weighted loss, each part a mean over what has the label."""

    task: PropertyFit
    tally: PropertyTally
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    seen: dict[str, float] = dataclasses.field(default_factory=dict)

    @torch.no_grad()
    def add(self, learner: nn.Module, batch: Sample) -> None:
        found, parts = self.task.parts(learner, batch)
        self.tally.add(found, batch)
        for (name, n), part in zip(self.task.counts(batch).items(), parts, strict=True):
            self.sums[name] = self.sums.get(name, 0.0) + n * float(part)
            self.seen[name] = self.seen.get(name, 0.0) + n

    def verdict(self) -> tuple[float, PropertyMetrics]:
        score = sum(weight * self.sums[name] / max(1.0, self.seen[name]) for name, weight in self.task.weights.items())
        return score, self.tally.metrics()


def property_loss(wanted: PropertyConfig, found: Tensor, sample: Sample, scale: float, config: LossConfig) -> Tensor:
    """ℓ of (R, K) predictions in units of the spread, () ; the mean over what is labelled, 0 where nothing is."""
    label = sample.targets[wanted.name]
    # Labels are chosen before the penalty: a NaN that is masked after it would still poison the gradient.
    known = _known(label)
    error = ((found - label) / (per(wanted, sample)[:, None] * scale))[known]
    values = penalty(error, config.properties_form, config.huber_delta)
    return values.sum() / max(1, len(values))


def mean_and_spread(wanted: PropertyConfig, samples: Iterable[Sample]) -> tuple[float, float]:
    """Mean of what no rotation changes, and root mean square of the components around it; of a 'sum' per atom.

    Raises:
        UserError: no labels to train on.
    """
    rows = [(s.targets[wanted.name] / per(wanted, s)[:, None])[_known(s.targets[wanted.name])] for s in samples]
    labels = torch.cat(rows)
    if len(labels) == 0:
        raise UserError(f"no structure to train on has the property '{wanted.name}'; add some, or leave it out")
    if wanted.kind == "tensor" and not torch.allclose(labels, labels.view(-1, 3, 3).mT.flatten(1), rtol=1e-3, atol=1e-6):
        raise UserError(f"the property '{wanted.name}' is no symmetric tensor; make it symmetric, or leave it out")
    unit = isotropic(wanted).to(labels)
    mean = (labels @ unit).mean() / unit.sum().clamp(min=1.0)
    spread = (labels - mean * unit).square().mean().sqrt()
    return float(mean), float(spread) if float(spread) > 1e-12 * (1 + abs(float(mean))) else 1.0


def per(wanted: PropertyConfig, sample: Sample) -> Tensor:
    """What labels are divided by, (R,): the number of atoms where a structure's is their sum."""
    rows = torch.ones(len(sample.targets[wanted.name]), dtype=torch.float64, device=sample.energy.device)
    return sample.graph.composition.sum(dim=1).to(rows) if wanted.of == "structure" and wanted.pooling == "sum" else rows


def _known(labels: Tensor) -> Tensor:
    """(R,) whether all components are there."""
    return labels.isfinite().all(dim=1)
