"""What every compiled form has in common: its description, its inputs, and the contract of a back end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from triforces_deploy.graph import Graph

INPUTS = ("numbers", "edge_index", "edge_vector", "batch", "owned", "composition")
"""Fields of a Graph that a captured function takes, in this order."""
OUTPUTS = ("energies", "edge_forces")
"""What it returns first: the two tensors of an Evaluation. Extras follow, where the model has them and they are wanted: the
embeddings under the streams' names, then the uncertainty."""
UNCERTAINTY = "uncertainty"
"""(N,) float64, eV. Standard deviation of each atom's energy, zero for atoms that are not owned."""
FORCES, STRESS = "forces", "stress"
"""Of a model with direct heads, (N, 3) eV/Å and (G, 3, 3) eV/Å³ float64; only the eager model returns them."""

Run = Callable[[Graph], tuple[Tensor, ...]]
"""A graph to the tensors that ``PayloadInfo.outputs`` names."""


class UnusableError(Exception):
    """Why a payload cannot run here, in one line; never fatal, since the model itself is in the file."""


@dataclasses.dataclass(frozen=True)
class PayloadInfo:
    """What metadata says of one payload."""

    backend: str
    """A key of payloads/table.py."""
    precision: str
    """A key of ``precision.PRECISIONS``."""
    target: str
    """Machine it runs on, e.g. 'linux-x86_64-v3'; 'any' where the back end's own library suffices."""
    torch: str
    """torch version that made it."""
    sha256: str
    outputs: tuple[str, ...] = OUTPUTS
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What only this back end has to say, e.g. the opset of ONNX."""


@dataclasses.dataclass(frozen=True)
class Payload:
    """A compiled form and what metadata says of it."""

    info: PayloadInfo
    content: bytes


def anywhere(_info: PayloadInfo) -> None:
    """The check of a back end that asks nothing of torch or of the machine."""


def any_machine(_device: torch.device) -> str:
    """The machine of a back end that runs on every one."""
    return "any"


def on_cpu(_info: PayloadInfo) -> tuple[str, ...]:
    """The devices of a back end that knows no other."""
    return ("cpu",)


def on_any_device(_info: PayloadInfo) -> tuple[str, ...]:
    """The devices of a back end whose payloads are made for none in particular."""
    return ("cpu", "cuda")


@dataclasses.dataclass(frozen=True)
class Backend:
    """How payloads of one kind are run."""

    code: bool
    """Whether opening one executes code from the file, so that the file must be trusted."""
    exchanges: bool
    """Whether it can call the exchange, hence run on several ranks."""
    open: Callable[[PayloadInfo, bytes, torch.device], Run]
    """Make a payload that ``check`` has passed callable for graphs on a device; UnusableError where that fails."""
    check: Callable[[PayloadInfo], None] = anywhere
    """UnusableError where this torch, machine or CPU is not one that it was made for; reads the description alone."""
    machine: Callable[[torch.device], str] = any_machine
    """What this machine is, as far as payloads made here for a device depend on it."""
    devices: Callable[[PayloadInfo], tuple[str, ...]] = on_cpu
    """Types of device on which a payload runs as it is; it takes its graphs there, and the first is its own."""


def flat_inputs(graph: Graph) -> tuple[Tensor, ...]:
    """The tensors of ``INPUTS``; contiguous, because compiled code assumes it and does not check."""
    fields = graph._asdict()
    return tuple(fields[name].contiguous() for name in INPUTS)


def check_torch(info: PayloadInfo) -> None:
    """UnusableError where another torch made the payload; compiled forms are promised for one version only."""
    here = torch.__version__.split("+")[0]
    if info.torch.split("+")[0] != here:
        raise UnusableError(f"made with torch {info.torch}, here is {here}")
