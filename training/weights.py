"""The parameters that learn, and what a step makes of their gradients: whole in every process, or shared out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, distributed, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from triforces_deploy.training.ranks import of_each_type, present_anywhere
from triforces_deploy.training.recipe import Recipe
from triforces_deploy.training.transfer import groups


class Weights(ABC):
    """Parameters with AdamW's memory and a moving average of each.

    Args:
        fabric: the processes.
        model: what is trained, the same in all of them.
        plan: of the run.
    """

    optimiser: torch.optim.Optimizer

    def __init__(self, fabric: Fabric, model: nn.Module, plan: Recipe) -> None:
        self.fabric, self.model, self.plan = fabric, model, plan
        self.groups = groups(model, plan.init, plan.optimiser.weight_decay)
        self.parameters: list[nn.Parameter] = [p for group in self.groups for p in group["params"]]

    def begin(self, lr: float) -> None:
        """Start a step with its rate and without gradients."""
        for group in self.optimiser.param_groups:
            group["lr"] = lr * group["rate"]
        for parameter in self.parameters:
            parameter.grad = None

    def sum_gradients(self, parts: Tensor, enough: bool) -> tuple[Tensor, bool]:
        """Add up the gradients of all processes, where all of them had memory enough.

        Args:
            parts: (K,) float64, this process' part of each loss.
            enough: whether this process had memory enough.

        Returns:
            The sum of ``parts``, and whether all had enough.
        """
        if self.fabric.world_size == 1:
            return parts, enough
        whole, enough, chosen = present_anywhere(self.parameters, parts, enough)
        if enough:
            for own in of_each_type(chosen, lambda p: p.dtype):
                self._sum(own)
        return whole, enough

    @abstractmethod
    def _sum(self, parameters: list[nn.Parameter]) -> None:
        """The gradients of parameters of one type; where a process has none it counts as zero."""

    @abstractmethod
    def clip(self, most: float) -> Tensor:
        """Scale all gradients together down to this norm; the norm before, ()."""

    @abstractmethod
    def step(self) -> None:
        """Let parameters and average follow the gradients."""

    @abstractmethod
    def averaged(self) -> AbstractContextManager[nn.Module]:
        """What is trained, with the averaged parameters: for all processes together, and with no step before it ends."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All of it in one form whatever the number of processes and how they share; every process must ask for it."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Take up a state."""


class Replicated(Weights):
    """Everything in every process."""

    def __init__(self, fabric: Fabric, model: nn.Module, plan: Recipe) -> None:
        super().__init__(fabric, model, plan)
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(plan.optimiser.ema))
        self.average.requires_grad_(False)
        self.optimiser = torch.optim.AdamW(self.groups, lr=plan.optimiser.lr, fused=True)

    def _sum(self, parameters: list[nn.Parameter]) -> None:
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        distributed.all_reduce(flat)
        for p, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = gradient.view_as(p)

    def clip(self, most: float) -> Tensor:
        return torch.nn.utils.clip_grad_norm_(self.parameters, most)

    def step(self) -> None:
        self.optimiser.step()
        self.average.update_parameters(self.model)

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        yield self.average.module

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
