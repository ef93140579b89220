"""What a fit learns: the seam between the loop, which drives, and whoever knows batches, losses and figures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from triforces_deploy.model import Model
from triforces_deploy.training.recipe import Recipe

Batch = TypeVar("Batch")
Judged = TypeVar("Judged", contravariant=True)


class Figures(Protocol):
    """What a validation found; a frozen dataclass of numbers."""

    def line(self) -> str:
        """For a person, after ``step n:``."""
        ...

    def row(self) -> dict[str, float]:
        """For the log, by the names of :attr:`Task.validation_columns`; what is not known is left out."""
        ...


class Judge(Protocol[Judged]):
    """Adds up one validation."""

    def add(self, learner: nn.Module, batch: Judged) -> None:
        """Count one batch."""
        ...

    def verdict(self) -> tuple[float, Figures]:
        """The score, which is better the lower it is, and the figures."""
        ...


class Task(ABC, Generic[Batch]):
    """Labels to fit, or structures to pretrain on.

    Batches are functions of the step and losses functions of the batch, so that weights, optimiser and step are all that a
    run must remember.
    """

    plan: Recipe
    files: dict[str, str]
    """Path → sha256 of everything that was read and split."""
    replayed: Mapping[str, str] = MappingProxyType({})
    """The same of what is mixed into the batches against forgetting."""
    weights: dict[str, float]
    """Weight of each part of the loss, by its column in the log: L = Σ_k w_k L_k."""
    validation_columns: tuple[str, ...]
    """Names of the figures of the averaged weights in the log."""

    @abstractmethod
    def split(self) -> dict[str, Any]:
        """Trajectories of each part."""

    @abstractmethod
    def provenance(self) -> dict[str, Any]:
        """What a checkpoint says of the data besides files and split."""

    @abstractmethod
    def greeting(self) -> Sequence[str]:
        """Lines for the person who starts it: how much of what."""

    @abstractmethod
    def new_learner(self) -> nn.Module:
        """What is trained, as it is before the first step; the plan's seed decides."""

    @abstractmethod
    def model_of(self, learner: nn.Module) -> Model:
        """The model in it, which is what gets saved."""

    @abstractmethod
    def batches(self, steps: range, rank: int = 0, ranks: int = 1) -> Iterator[Batch]:
        """The training batches of some steps; with several ranks, each one's share of the structures."""

    @abstractmethod
    def losses(self, learner: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The unweighted parts L_k, each (), by the names of :attr:`weights`."""

    @abstractmethod
    def counts(self, batch: Batch) -> dict[str, float]:
        """How many things each part is the mean of, so that shares of a batch can be put together; 1 where it is no mean."""

    def total(self, parts: dict[str, Tensor]) -> Tensor:
        """L, ()."""
        return torch.stack([weight * parts[name] for name, weight in self.weights.items()]).sum()

    @property
    def training_columns(self) -> tuple[str, ...]:
        """Names of the losses in the log, which are means over the steps since the row before."""
        return ("loss", *self.weights)

    @abstractmethod
    def validation(self) -> Iterable[Batch]:
        """The batches to validate on, the same each time."""

    @abstractmethod
    def judge(self) -> Judge[Batch]:
        """A new one for each validation."""

    @abstractmethod
    def figures(self, record: dict[str, Any]) -> Figures:
        """Those that :func:`~triforces_deploy.config.as_dict` made a record of."""
