"""The fit of a model to structures without labels: two views of each, and an objective."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from triforces_deploy.config import as_dict
from triforces_deploy.errors import UserError
from triforces_deploy.model import Model
from triforces_deploy.training.batches import Order, cut
from triforces_deploy.training.data import elements_seen, load_unlabelled
from triforces_deploy.training.objectives.across import alone
from triforces_deploy.training.objectives.base import Views
from triforces_deploy.training.objectives.learner import Learner, counts
from triforces_deploy.training.recipe import Recipe
from triforces_deploy.training.task import Task
from triforces_deploy.training.transfer import take_over
from triforces_deploy.training.views import two_views


class Pretraining(Task[Views]):
    """Fits the terms of ``objective``.

    Structures stay where they are mapped from until a view of them is made. What one counts in a batch by atoms or edges is
    what the file has, with neighbours up to the cutoff of the lists: the views themselves are only known once they are made,
    and what they mostly do is leave edges out. Two of each make a batch twice as large, and views of tiled structures count
    no more than others.

    Raises:
        UserError: bad structures, or none to train or to validate on.
    """

    def __init__(self, plan: Recipe) -> None:
        assert plan.objective is not None
        self.plan, self.objective = plan, plan.objective
        self.started_from: dict[str, Any] = {}
        self.weights = {f"loss_{name}": term.weight for name, term in self.objective.terms().items()}
        self.validation_columns = tuple(f"val_{name}" for name in self.objective.terms())
        if plan.init.replay is not None:
            raise UserError("init.replay is for fits to labels; to pretrain on several data sets name them all in data.files")
        unit = plan.trainer.batch_by
        self.data = load_unlabelled(plan.data, plan.model, edges=unit == "edges")
        self.order = Order(self.data.train.sizes(unit), plan.trainer.batch_size, plan.seed)
        self.files = self.data.files

    def split(self) -> dict[str, Any]:
        return as_dict(self.data.split)

    def provenance(self) -> dict[str, Any]:
        data = self.data
        return {
            **self.started_from,
            "pretrained": sorted(self.objective.terms()),
            "elements": elements_seen(data.train),
            "frames": {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)},
        }

    def greeting(self) -> list[str]:
        terms = ", ".join(self.objective.terms())
        data = self.data
        return [f"{len(data.train)} structures to pretrain on, {len(data.validation)} to validate; objective {terms}"]

    def new_learner(self) -> Learner:
        plan = self.plan
        with torch.random.fork_rng():
            torch.manual_seed(plan.seed)
            model = Model(plan.model)
            model.set_network_dtype(torch.float64 if plan.trainer.precision == "float64" else torch.float32)
            self.started_from = take_over(model, plan.init)
            return Learner(model, self.objective)

    def model_of(self, learner: nn.Module) -> Model:
        assert isinstance(learner, Learner)
        return learner.model

    def batches(self, steps: range, rank: int = 0, ranks: int = 1) -> Iterator[Views]:
        return (self.batch(step, rank, ranks) for step in steps)

    def batch(self, step: int, rank: int, ranks: int) -> Views:
        """The views of a step: the same whoever makes them, and others whenever a structure comes again."""
        plan = self.plan
        chosen = self.order.batch(step)
        if len(chosen) < ranks:
            raise UserError(
                f"the batch of step {step + 1} has {len(chosen)} structures, which {ranks} processes and pieces cannot share; "
                "raise trainer.batch_size, or lower trainer.accumulate or trainer.devices"
            )
        own = [(self.data.train.atoms(k), (plan.seed, 3, step, k)) for k in chosen[rank::ranks]]
        return two_views(own, plan.views, plan.model.cutoff, key=step + 1)

    def losses(self, learner: nn.Module, batch: Views) -> dict[str, Tensor]:
        return {f"loss_{name}": loss for name, loss in learner(batch).items()}

    def counts(self, batch: Views) -> dict[str, float]:
        return {f"loss_{name}": count for name, count in counts(self.objective, batch).items()}

    def validation(self) -> Iterator[Views]:
        plan, held_out = self.plan, self.data.validation
        for some in cut(held_out.sizes(plan.trainer.batch_by), plan.trainer.batch_size):
            chosen = [(held_out.atoms(k), (plan.seed, 4, k)) for k in some]
            yield two_views(chosen, plan.views, plan.model.cutoff, key=0)

    def judge(self) -> _Judge:
        return _Judge(self.weights)

    def figures(self, record: dict[str, Any]) -> PretrainFigures:
        return PretrainFigures(**record)


@dataclasses.dataclass(frozen=True)
class PretrainFigures:
    """Losses of structures that were held out; means over batches, by their structures."""

    structures: int
    loss: float
    """The weighted sum."""
    terms: dict[str, float]
    """Unweighted, by name."""

    def line(self) -> str:
        """All losses, for a person."""
        return f"loss {self.loss:.4g}; " + ", ".join(f"{name} {value:.4g}" for name, value in self.terms.items())

    def row(self) -> dict[str, float]:
        """The terms by their columns in the log."""
        return {f"val_{name}": value for name, value in self.terms.items()}


class _Judge:
    """The score is the weighted sum."""

    def __init__(self, weights: dict[str, float]) -> None:
        self.weights = {name.removeprefix("loss_"): weight for name, weight in weights.items()}
        self.sums, self.n = dict.fromkeys(self.weights, 0.0), 0

    def add(self, learner: nn.Module, batch: Views) -> None:
        n = batch.graph.composition.shape[0] // 2
        with torch.no_grad(), alone():
            found = learner(batch)
        self.sums = {name: total + n * float(found[name].detach()) for name, total in self.sums.items()}
        self.n += n

    def verdict(self) -> tuple[float, PretrainFigures]:
        terms = {name: total / self.n for name, total in self.sums.items()}
        loss = sum(self.weights[name] * value for name, value in terms.items())
        return loss, PretrainFigures(self.n, loss, terms)
