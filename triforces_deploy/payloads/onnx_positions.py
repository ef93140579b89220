"""The self-contained ONNX form as a payload; ``triforces_deploy.onnx_positions`` runs it."""

from __future__ import annotations

import torch

from triforces_deploy.payloads.base import Backend, PayloadInfo, Run, UnusableError


def _open(_info: PayloadInfo, _content: bytes, _device: torch.device) -> Run:
    raise UnusableError("it makes its own graph from positions; use triforces_deploy.onnx_positions.load(FILE)")


BACKEND = Backend(code=False, exchanges=False, open=_open)
