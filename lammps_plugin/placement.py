"""Where a model runs and what LAMMPS hands over for it; decided once, when the pair style opens its file.

LAMMPS itself stays on the CPU. Beside a GPU the model gets positions at every step and neighbour lists when LAMMPS builds
them, instead of all pairs at every step, which would be fifty times as much to copy.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Literal, cast, get_args

import torch

from triforces_deploy import artifact
from triforces_deploy.errors import UserError
from triforces_deploy.memory import CPU
from triforces_deploy.potential import Potential

DEVICE = "TFDEPLOY_DEVICE"
"""Environment variable: cpu, cuda (a GPU for each rank in turn) or cuda:N."""
ROUTE = "TFDEPLOY_ROUTE"
"""Environment variable for tests and benchmarks alone: one of :data:`Route`, whatever the device."""

Route = Literal["pairs", "positions", "graphs"]
"""'pairs': edge vectors at every step. 'positions': positions, and lists when they are new. 'graphs': the same with padded
sizes, whose evaluation a GPU repeats as one recorded graph."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """A device and what is handed over."""

    device: torch.device
    why: str
    """Of the device, for the start-up block."""
    route: Route | None = None
    """None where nobody insists: pairs on the CPU; on a GPU positions, as graphs where systems are small."""

    def describe(self) -> str:
        """For the start-up block."""
        what = "positions at every step and new neighbor lists" if self.by_positions else "edge vectors at every step"
        return f"{self.device} ({self.why}), gets {what}"

    @property
    def by_positions(self) -> bool:
        return self.device.type != "cpu" if self.route is None else self.route != "pairs"


HERE = Placement(CPU, "torch sees no GPU")
"""Without a choice."""


def choose(local_rank: int) -> Placement:
    """The device of this rank.

    Args:
        local_rank: among the ranks of its node, from 0.

    Raises:
        UserError: a variable that means nothing, or a GPU that is not there.
    """
    wanted, route = os.environ.get(DEVICE), os.environ.get(ROUTE)
    if route is not None and route not in get_args(Route):
        raise UserError(f"{ROUTE}={route}: expected {', '.join(get_args(Route))}")
    forced = cast(Route | None, route)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cpu":
        return Placement(CPU, f"{DEVICE}=cpu", forced)
    if wanted is None and gpus == 0:
        return dataclasses.replace(HERE, route=forced)
    index = _index(wanted or "cuda")
    if gpus == 0 or (index and int(index) >= gpus):
        raise UserError(f"{DEVICE}={wanted}: torch sees {_gpus(gpus)} here; set it to cpu, or leave it out")
    number = int(index) if index else local_rank % gpus
    why = f"{DEVICE}={wanted}" if index else f"local rank {local_rank}, {_gpus(gpus)} on this node"
    return Placement(torch.device("cuda", number), why, forced)


def overruled(device: torch.device) -> str:
    """What to say, after a device that is given, where the variable asks for another; empty where it does not.

    Raises:
        UserError: a variable that means nothing.
    """
    wanted = os.environ.get(DEVICE)
    if wanted is None or wanted == device.type or (wanted != "cpu" and _index(wanted) == str(device.index)):
        return ""
    if wanted == "cpu":
        remedy = "start LAMMPS without '-k on g N'"
    elif device.type == "cpu":
        remedy = "start a LAMMPS with KOKKOS for CUDA by '-k on g 1 -sf kk', or use pair_style triforces"
    else:
        remedy = "choose GPUs for LAMMPS by CUDA_VISIBLE_DEVICES"
    return f"; WARNING: {DEVICE}={wanted} has no effect in this coupling, {remedy}"


def _index(wanted: str) -> str:
    """Of cuda:N; empty for cuda."""
    kind, _, index = wanted.partition(":")
    if kind != "cuda" or not (index.isdecimal() or wanted == "cuda"):
        raise UserError(f"{DEVICE}={wanted}: expected cpu, cuda or cuda:N")
    return index


def _gpus(count: int) -> str:
    return f"{count or 'no'} GPU{'s' if count > 1 else ''}"


def load(path: Path, placement: Placement) -> tuple[Potential, Placement]:
    """The potential on its device; on the CPU instead, and the placement says so, where a GPU that nobody asked for fails.

    Raises:
        UserError: as :func:`artifact.load`, or the GPU that was asked for fails.
    """
    if placement.device.type == "cpu":
        return artifact.load(path, None, False, CPU), placement
    try:
        torch.cuda.set_device(placement.device)
        return artifact.load(path, None, False, placement.device), placement
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        if DEVICE in os.environ:
            raise UserError(f"{placement.device}: {reason}; set {DEVICE}=cpu to do without it") from error
    return load(path, dataclasses.replace(placement, device=CPU, why=f"{placement.device} cannot be used: {reason}"))
