"""Several processes: how they start, and what they tell each other in a step.

Gradients are added up once per step, after all pieces, and not while they are made: a process that runs out of memory half
way can then still say so, and all try again with smaller pieces.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, TypeVar

import torch
from lightning.fabric import Fabric
from torch import Tensor, distributed, nn

from triforces_deploy.errors import UserError
from triforces_deploy.training.launch import environment_of
from triforces_deploy.training.recipe import TrainerConfig

Item = TypeVar("Item")

_OPERATIONS = {"sum": distributed.ReduceOp.SUM, "max": distributed.ReduceOp.MAX}


def new_fabric(trainer: TrainerConfig) -> Fabric:
    """Lightning Fabric for device, precision and processes; the loop, log and checkpoints are ours.

    Raises:
        UserError: GPUs that are not there, or a launch of several processes that does not fit; see launch.py.
    """
    if trainer.device == "cuda" and not torch.cuda.is_available():
        raise UserError("trainer.device is cuda but torch finds no GPU; set it to auto or cpu")
    accelerator = "cuda" if torch.cuda.is_available() and trainer.device != "cpu" else "cpu"
    if accelerator == "cuda" and trainer.devices > torch.cuda.device_count():
        raise UserError(f"trainer.devices is {trainer.devices} but torch finds {torch.cuda.device_count()} GPUs")
    return Fabric(
        accelerator=accelerator,
        devices=trainer.devices,
        num_nodes=trainer.nodes,
        strategy="ddp" if trainer.devices * trainer.nodes > 1 else "auto",
        plugins=environment_of(trainer),
        precision="bf16-mixed" if trainer.precision == "bf16" else "32-true",
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what Fabric says about itself, and torch about layer norms in bf16, which are slower on a CPU and right."""
    loggers = [logging.getLogger(name) for name in ("lightning.fabric", "lightning.pytorch")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def agree(fabric: Fabric, values: Tensor, how: Literal["sum", "max"]) -> Tensor:
    """The sum or the largest over all processes of each number; on the CPU, where it came from."""
    if fabric.world_size == 1:
        return values
    everywhere = fabric.to_device(values.clone())
    distributed.all_reduce(everywhere, _OPERATIONS[how])
    return everywhere.cpu()


def present_anywhere(
    parameters: Sequence[nn.Parameter], parts: Tensor, enough: bool
) -> tuple[Tensor, bool, list[nn.Parameter]]:
    """What the processes must know of each other before they add up gradients, in one message.

    Args:
        parameters: in the same order everywhere.
        parts: (K,) float64, this process' part of each loss.
        enough: whether this process had memory enough.

    Returns:
        The sum of ``parts``, whether all had enough, and the parameters that have a gradient in any process.
    """
    said = torch.cat([parts.new_tensor([float(not enough), *(float(p.grad is not None) for p in parameters)]), parts])
    distributed.all_reduce(said)
    lacking, present, whole = said[0], said[1 : 1 + len(parameters)].tolist(), said[1 + len(parameters) :]
    return whole, float(lacking) == 0, [p for p, n in zip(parameters, present, strict=True) if n]


def of_each_type(found: Sequence[Item], type_of: Callable[[Item], torch.dtype]) -> list[list[Item]]:
    """The same in lists that can be sent as one tensor each, in an order that is the same everywhere."""
    kinds = sorted({type_of(item) for item in found}, key=str)
    return [[item for item in found if type_of(item) == kind] for kind in kinds]


def refuse_others(fabric: Fabric, identity: str, step: int) -> None:
    """UserError where not all processes have the same run in front of them; all of them raise it, so that none waits.

    Args:
        fabric: the processes.
        identity: recipe and content of the data.
        step: what the run folder's state stands at.
    """
    number = int(hashlib.sha256(identity.encode()).hexdigest()[:12], 16)  # exact in float64
    own = torch.tensor([number, -number, step, -step], dtype=torch.float64)
    most = agree(fabric, own, "max").tolist()
    if most[0] != -most[1]:
        raise UserError("the processes have other recipes or other data files; give all nodes the same")
    if most[2] != -most[3]:
        raise UserError("not all processes see the run folder's state; put the folder where all nodes can read it")


def start_alike(fabric: Fabric, module: nn.Module) -> None:
    """Give every process the weights and buffers of the first."""
    if fabric.world_size > 1:
        for tensor in module.state_dict().values():
            distributed.broadcast(tensor, 0)
