"""Gradients after the backward pass, AdamW's memory and the moving average shared out among the processes (ZeRO, stage 2).

Each process keeps one part of every parameter together with its two moments and its average, receives the sum of all
processes' gradients for this part alone, makes AdamW's step on it, and gives the result to the others:

    gradients → reduce-scatter → clip by the norm of all parts → AdamW and average of the own parts → all-gather → parameters

Everything in it acts number by number, so that the weights are those of whole copies. Of the five numbers that a parameter
otherwise takes in every process (itself, gradient, two moments, average), the last three take 1/P of their room in P processes.

The parameters themselves stay whole. Torch's FSDP, which shares them too, frees a layer's weights once the layer has run;
forces are derivatives inside the loss, so that the backward pass needs those weights in places where it does not fetch them.
Taken as one unit the whole loss gets right gradients from it, but then all weights are there at once, as they are here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, distributed, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from triforces_deploy.training.ranks import of_each_type
from triforces_deploy.training.recipe import Recipe
from triforces_deploy.training.weights import Weights

AVERAGE = "module."
"""Before the names of averaged parameters in a state, as torch's AveragedModel has it."""


class Sharded(Weights):
    """A part of everything in every process but of the parameters themselves."""

    def __init__(self, fabric: Fabric, model: nn.Module, plan: Recipe) -> None:
        super().__init__(fabric, model, plan)
        self.parts = [nn.Parameter(self._part(p.detach())) for p in self.parameters]
        self.average = [part.detach().clone() for part in self.parts]
        self.n_averaged = 0
        found = iter(self.parts)
        own = [{**group, "params": [next(found) for _ in group["params"]]} for group in self.groups]
        self.optimiser = torch.optim.AdamW(own, lr=plan.optimiser.lr, fused=True)
        names = {parameter: name for name, parameter in model.named_parameters()}
        self.names = [names[p] for p in self.parameters]

    def begin(self, lr: float) -> None:
        super().begin(lr)
        self.optimiser.zero_grad()

    def _part(self, values: Tensor) -> Tensor:
        """Our part of a tensor, as one row; the last parts are filled up with zeros."""
        return _rows(values, self.fabric.world_size)[self.fabric.global_rank].clone()

    def _sum(self, parameters: list[nn.Parameter]) -> None:
        zeros = (torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)
        rows = [_rows(gradient, self.fabric.world_size) for gradient in zeros]
        whole = torch.cat(rows, dim=1).flatten()
        received = whole.new_empty(sum(r.shape[1] for r in rows))
        distributed.reduce_scatter_single(received, whole)
        place = dict(zip(self.parameters, self.parts, strict=True))
        for p, gradient in zip(parameters, received.split([r.shape[1] for r in rows]), strict=True):
            place[p].grad, p.grad = gradient, None

    def clip(self, most: float) -> Tensor:
        square = torch.zeros((), dtype=torch.float64, device=self.fabric.device)
        for part in self.parts:
            square += 0.0 if part.grad is None else part.grad.double().square().sum()
        distributed.all_reduce(square)
        norm = square.sqrt()
        torch.nn.utils.clip_grads_with_norm_(self.parts, most, norm.to(self.parts[0].dtype))
        return norm

    @torch.no_grad()
    def step(self) -> None:
        self.optimiser.step()
        own = [part.detach() for part in self.parts]
        if self.n_averaged == 0:
            for mean, part in zip(self.average, own, strict=True):
                mean.copy_(part)
        else:
            follow = get_ema_multi_avg_fn(self.plan.optimiser.ema)
            for kind in {mean.dtype for mean in self.average}:
                chosen = [k for k, mean in enumerate(self.average) if mean.dtype == kind]
                follow([self.average[k] for k in chosen], [own[k] for k in chosen], self.n_averaged)
        self.n_averaged += 1
        self._publish(own)

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        self._publish(self.average)
        yield self.model
        self._publish([part.detach() for part in self.parts])

    def state(self) -> dict[str, Any]:
        model = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        average = {AVERAGE + name: tensor for name, tensor in model.items()}
        for name, now, mean in zip(self.names, self._whole(self.parts), self._whole(self.average), strict=True):
            model[name], average[AVERAGE + name] = now, mean
        found = self.optimiser.state_dict()
        kept = found["state"]
        for kind in ("exp_avg", "exp_avg_sq"):
            whole = self._whole([kept[k][kind] for k in kept], [self.parameters[k] for k in kept])
            for k, tensor in zip(kept, whole, strict=True):
                kept[k] = {**kept[k], kind: tensor}
        return {
            "model": model,
            "average": {"n_averaged": torch.tensor(self.n_averaged), **average},
            "optimiser": {**found, "state": kept},
        }

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.n_averaged = int(state["average"]["n_averaged"])
        for name, part, mean in zip(self.names, self.parts, self.average, strict=True):
            part.copy_(self._part(state["model"][name]))
            mean.copy_(self._part(state["average"][AVERAGE + name]))
        shared = {
            k: {kind: tensor if kind == "step" else self._part(tensor) for kind, tensor in of_one.items()}
            for k, of_one in state["optimiser"]["state"].items()
        }
        self.optimiser.load_state_dict({**state["optimiser"], "state": shared})

    @torch.no_grad()
    def _publish(self, parts: Sequence[Tensor]) -> None:
        """Give all processes all parts, as the model's parameters."""
        for parameter, whole in zip(self.parameters, self._whole(parts), strict=True):
            parameter.copy_(whole)

    def _whole(self, parts: Sequence[Tensor], like: Sequence[Tensor] | None = None) -> list[Tensor]:
        """The tensors of which every process has a part, with the shapes of ``like``, by default of all parameters."""
        shapes = self.parameters if like is None else like
        found: dict[int, Tensor] = {}
        for places in of_each_type(list(range(len(parts))), lambda k: parts[k].dtype):
            own = torch.cat([parts[k].detach() for k in places])
            rows = own.new_empty((self.fabric.world_size, len(own)))
            distributed.all_gather_single(rows.view(-1), own)
            for k, columns in zip(places, rows.split([len(parts[k]) for k in places], dim=1), strict=True):
                # A single column is a view with gaps, in which fused AdamW would read its neighbours' numbers.
                whole = columns.reshape(-1)[: shapes[k].numel()].clone(memory_format=torch.contiguous_format)
                found[k] = whole.view(shapes[k].shape)
        return [found[k] for k in range(len(parts))]


def _rows(values: Tensor, n: int) -> Tensor:
    """(n, …) The numbers of a tensor in n rows of one length."""
    flat = values.flatten()
    return nn.functional.pad(flat, (0, -len(flat) % n)).view(n, -1)
