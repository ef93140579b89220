"""The fit of a model to structures without labels: two views of each, and an objective."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray
from torch import Tensor, nn

from triforces_deploy.config import as_dict
from triforces_deploy.errors import UserError
from triforces_deploy.files import existing, sha256_of
from triforces_deploy.model import Model
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.training.batches import Order, cut
from triforces_deploy.training.data import Unit
from triforces_deploy.training.objectives.across import alone
from triforces_deploy.training.objectives.base import Views
from triforces_deploy.training.objectives.learner import Learner, counts
from triforces_deploy.training.recipe import Recipe
from triforces_deploy.training.sources.table import read_records
from triforces_deploy.training.splitting import split_by_trajectory
from triforces_deploy.training.task import Task
from triforces_deploy.training.transfer import take_over
from triforces_deploy.training.views import two_views

OVERLAPS = 1.0
"""Å. Neighbours looked for at the door, where nothing but atoms on top of each other matters."""


class Entry(NamedTuple):
    """A structure and where it comes from."""

    atoms: Atoms
    trajectory: str


class Pretraining(Task[Views]):
    """Fits the terms of ``objective``.

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
        config = plan.data
        paths, own = [Path(f) for f in config.files], [Path(f) for f in config.validation_files]
        if not paths:
            raise UserError("data.files is empty; name at least one file of structures")
        found, validation = _read(paths, plan), _read(own, plan)
        counts = dict(collections.Counter(e.trajectory for e in found))
        self._split = split_by_trajectory(counts, 0.0 if own else config.validation, config.test, config.split_seed)
        kept = {name: set(getattr(self._split, name)) for name in ("train", "validation", "test")}
        self.train = [e.atoms for e in found if e.trajectory in kept["train"]]
        self.held_out = [e.atoms for e in validation or found if own or e.trajectory in kept["validation"]]
        self.n_test = sum(e.trajectory in kept["test"] for e in found)
        if not self.train or not self.held_out:
            raise UserError(
                "no structures to train on or none to validate on; set data.validation above 0 or name validation_files"
            )
        self.order = Order(_sizes(self.train, plan.trainer.batch_by), plan.trainer.batch_size, plan.seed)
        self.files = {str(p): sha256_of(p) for p in (*paths, *own)}

    def split(self) -> dict[str, Any]:
        return as_dict(self._split)

    def provenance(self) -> dict[str, Any]:
        seen = sorted({int(z) for atoms in self.train for z in atoms.numbers})
        return {
            **self.started_from,
            "pretrained": sorted(self.objective.terms()),
            "elements": [chemical_symbols[z] for z in seen],
            "frames": {"train": len(self.train), "validation": len(self.held_out), "test": self.n_test},
        }

    def greeting(self) -> list[str]:
        terms = ", ".join(self.objective.terms())
        return [f"{len(self.train)} structures to pretrain on, {len(self.held_out)} to validate; objective {terms}"]

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
        chosen = [(self.train[k], (plan.seed, 3, step, k)) for k in self.order.batch(step)]
        if len(chosen) < ranks:
            raise UserError(
                f"the batch of step {step + 1} has {len(chosen)} structures, which {ranks} processes and pieces cannot share; "
                "raise trainer.batch_size, or lower trainer.accumulate or trainer.devices"
            )
        return two_views(chosen[rank::ranks], plan.views, plan.model.cutoff, key=step + 1)

    def losses(self, learner: nn.Module, batch: Views) -> dict[str, Tensor]:
        return {f"loss_{name}": loss for name, loss in learner(batch).items()}

    def counts(self, batch: Views) -> dict[str, float]:
        return {f"loss_{name}": count for name, count in counts(self.objective, batch).items()}

    def validation(self) -> Iterator[Views]:
        plan = self.plan
        for some in cut(_sizes(self.held_out, plan.trainer.batch_by), plan.trainer.batch_size):
            chosen = [(self.held_out[k], (plan.seed, 4, k)) for k in some]
            yield two_views(chosen, plan.views, plan.model.cutoff, key=0)

    def judge(self) -> _Judge:
        return _Judge(self.weights)

    def figures(self, record: dict[str, Any]) -> PretrainFigures:
        return PretrainFigures(**record)


def _read(paths: Sequence[Path], plan: Recipe) -> list[Entry]:
    """Every structure of some files, labelled or not, checked; UserError names the frame."""
    found: list[Entry] = []
    for path in paths:
        before = len(found)
        for k, (atoms, trajectory, *_) in read_records(existing(path, "structures, labelled or not")):
            unknown = sorted(set(atoms.get_chemical_symbols()) - set(plan.model.elements))
            if len(atoms) == 0:
                raise UserError(f"{path}@{k} has no atoms; remove the frame")
            if unknown:
                raise UserError(f"{path}@{k} holds {', '.join(unknown)}; add it to model.elements or remove the frame")
            try:
                graph_from_atoms(atoms, OVERLAPS)
            except UserError as error:
                raise UserError(f"{path}@{k}: {error}; mend or remove the frame") from error
            found.append(Entry(atoms, trajectory or f"{path.name}:{atoms.get_chemical_formula()}"))
        if len(found) == before:
            raise UserError(f"{path} holds no structures; expected at least one")
    return found


def _sizes(structures: Sequence[Atoms], unit: Unit) -> NDArray[np.int64]:
    """(S,) What each structure counts in a batch."""
    if unit == "edges":
        raise UserError("trainer.batch_by: edges differ from view to view; take atoms or structures for pretraining")
    return np.array([len(atoms) if unit == "atoms" else 1 for atoms in structures], dtype=np.int64)


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
