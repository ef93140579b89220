"""TorchScript: torch alone runs it, without a compiler and on any machine."""

from __future__ import annotations

import io
import warnings

import torch
from torch import Tensor

from triforces_deploy.graph import Graph
from triforces_deploy.payloads.base import Backend, PayloadInfo, Run, UnusableError, check_torch, flat_inputs, on_any_device


def _open(_info: PayloadInfo, content: bytes, device: torch.device) -> Run:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.*", DeprecationWarning)
        try:
            script = torch.jit.load(io.BytesIO(content), map_location=device)
        except RuntimeError as error:
            raise UnusableError(str(error).splitlines()[0]) from error
    _move_constants(script.graph, device)

    def run(graph: Graph) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(script(*flat_inputs(graph)))

    return run


def _move_constants(graph: torch.Graph, device: torch.device) -> None:
    """Make new tensors on the device: loading moves the weights, and leaves the CPU of the capture in the program."""
    for node in graph.findAllNodes("prim::Constant"):  # type: ignore[attr-defined]
        if node.output().type().kind() == "DeviceObjType":
            node.s_("value", str(device))


BACKEND = Backend(code=True, exchanges=True, open=_open, check=check_torch, devices=on_any_device)
