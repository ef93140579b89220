"""The torch.export program: the neutral source of the other forms, which torch can also run as it is."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from triforces_deploy.graph import Graph
from triforces_deploy.payloads.base import Backend, PayloadInfo, Run, UnusableError, check_torch, flat_inputs, on_any_device

if TYPE_CHECKING:
    from torch.export import ExportedProgram  # importing it costs seconds


def load_program(content: bytes) -> ExportedProgram:
    """The program; UnusableError where torch cannot read it. It may run what is in it, so only from a trusted file."""
    from triforces_deploy import exchange  # noqa: F401  (the program calls its operators, which must be known)

    try:
        return torch.export.load(io.BytesIO(content))
    except Exception as error:  # torch says in many ways that it does not know a program
        raise UnusableError(f"torch cannot read the program: {str(error).splitlines()[0]}") from error


def _open(_info: PayloadInfo, content: bytes, device: torch.device) -> Run:
    program = load_program(content)
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    module = program.module()

    def run(graph: Graph) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(module(*flat_inputs(graph)))

    return run


BACKEND = Backend(code=True, exchanges=True, open=_open, check=check_torch, devices=on_any_device)
