"""TorchScript from the captured graph."""

from __future__ import annotations

import copy
import io
import warnings

import torch

from .base import Captured, Lowered


def lower(captured: Captured) -> Lowered:
    """Scripted, not traced: a trace of a captured graph silently freezes the numbers of atoms and edges."""
    named = copy.deepcopy(captured.module)
    for node in named.graph.nodes:
        if node.target is torch.ops.aten.sym_size.int:
            node.target = torch.ops.aten.size
        elif isinstance(node.target, torch._ops.OpOverload):
            node.target = node.target.overloadpacket  # the language knows operators by name, not by overload
    named.recompile()
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated, and remarks on torch's own module
        torch.jit.save(torch.jit.script(named), buffer)
    return Lowered(buffer.getvalue())
