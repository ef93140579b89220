"""TorchScript: torch alone runs it, without a compiler and on any machine."""

from __future__ import annotations

import io
import warnings

import torch
from torch import Tensor

from triforces_deploy.graph import Graph
from triforces_deploy.payloads.base import Backend, PayloadInfo, Run, UnusableError, check_torch, flat_inputs


def _open(_info: PayloadInfo, content: bytes) -> Run:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.*", DeprecationWarning)
        try:
            script = torch.jit.load(io.BytesIO(content), map_location="cpu")
        except RuntimeError as error:
            raise UnusableError(str(error).splitlines()[0]) from error

    def run(graph: Graph) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(script(*flat_inputs(graph)))

    return run


BACKEND = Backend(code=True, exchanges=True, open=_open, check=check_torch)
