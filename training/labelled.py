"""What fits to labels have in common: the structures, the batches, and the model that is trained itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from triforces_deploy.config import as_dict
from triforces_deploy.errors import UserError
from triforces_deploy.model import Model
from triforces_deploy.training.batches import Stream, cut
from triforces_deploy.training.data import MOST, elements_seen, load, load_whole, shortest_distances
from triforces_deploy.training.recipe import Recipe
from triforces_deploy.training.structures import Sample
from triforces_deploy.training.task import Task
from triforces_deploy.training.transfer import take_over


class Labelled(Task[Sample]):
    """Trains a model on structures with labels.

    Raises:
        UserError: bad data, or nothing to train or to validate on.
    """

    def __init__(self, plan: Recipe) -> None:
        self.plan = plan
        self.data = load(plan.data, plan.model)
        self.files = self.data.files
        self.shortest = shortest_distances(self.data.train.chunks(MOST))
        self.started_from: dict[str, Any] = {}
        trainer, replay = plan.trainer, plan.init.replay
        self.old, share = None, 0.0
        if replay is not None:
            if trainer.batch_size < 2:
                raise UserError("init.replay needs batches that old and new structures can share; raise trainer.batch_size")
            (self.old, self.replayed), share = load_whole(replay.files, plan.model), replay.share
            twice = [name for name, digest in self.replayed.items() if digest in self.files.values()]
            if twice:
                raise UserError(f"init.replay.files: {twice[0]} is new data too, of which some is held out; leave it out here")
        self.stream = Stream(
            self.data.train, trainer.batch_size, trainer.batch_by, plan.seed, plan.data.rotate, self.old, share
        )

    @abstractmethod
    def fit_to_labels(self, model: Model) -> None:
        """Set what of a new model is no weight and comes from the training labels."""

    def split(self) -> dict[str, Any]:
        return as_dict(self.data.split)

    def provenance(self) -> dict[str, Any]:
        data = self.data
        return {
            **self.started_from,
            **({"replayed": dict(self.replayed)} if self.replayed else {}),
            "elements": elements_seen(data.train),
            "shortest_distances": self.shortest,
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
        if self.old is not None:
            lines.append(f"{len(self.old)} old structures are mixed in, none of them held out")
        return lines

    def new_learner(self) -> Model:
        plan = self.plan
        with torch.random.fork_rng():
            torch.manual_seed(plan.seed)
            model = Model(plan.model)
        model.set_network_dtype(torch.float64 if plan.trainer.precision == "float64" else torch.float32)
        self.started_from = take_over(model, plan.init)
        self.fit_to_labels(model)
        return model

    def model_of(self, learner: nn.Module) -> Model:
        assert isinstance(learner, Model)
        return learner

    def batches(self, steps: range, rank: int = 0, ranks: int = 1) -> Iterator[Sample]:
        return self.stream.batches(steps, rank, ranks)

    def validation(self) -> Iterator[Sample]:
        trainer, found = self.plan.trainer, self.data.validation
        return (found.batch(chosen) for chosen in cut(found.sizes(trainer.batch_by), trainer.batch_size))
