"""Numbers inside a graph, kept to the last digit.

The ONNX exporter stores every Python number as float32, which costs float64 graphs half of their digits. Here they become
tensors of the type in which they are used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node

from triforces_deploy.payloads.base import UnusableError

A = torch.ops.aten
Call = tuple[Any, tuple[Any, ...]]
"""An operator and its arguments."""

REWRITES: dict[Any, Callable[..., Call]] = {
    A.mul.Tensor: lambda x, c: (A.mul.Tensor, (x, c)),
    A.mul.Scalar: lambda x, c: (A.mul.Tensor, (x, c)),
    A.add.Tensor: lambda x, c: (A.add.Tensor, (x, c)),
    A.add.Scalar: lambda x, c: (A.add.Tensor, (x, c)),
    A.sub.Tensor: lambda x, c: (A.sub.Tensor, (x, c)),
    A.sub.Scalar: lambda x, c: (A.sub.Tensor, (x, c)),
    A.rsub.Scalar: lambda x, c: (A.sub.Tensor, (c, x)),
    A.div.Tensor: lambda x, c: (A.div.Tensor, (x, c)),
    A.div.Scalar: lambda x, c: (A.div.Tensor, (x, c)),
    A.pow.Tensor_Scalar: lambda x, c: (A.pow.Tensor_Tensor, (x, c)),
    A.pow.Scalar: lambda c, x: (A.pow.Tensor_Tensor, (c, x)),
    A.ge.Scalar: lambda x, c: (A.ge.Tensor, (x, c)),
    A.gt.Scalar: lambda x, c: (A.gt.Tensor, (x, c)),
    A.le.Scalar: lambda x, c: (A.le.Tensor, (x, c)),
    A.lt.Scalar: lambda x, c: (A.lt.Tensor, (x, c)),
    A.clamp.default: lambda x, low, high=None: (A.clamp.Tensor, (x, low, high)),
    A.clamp_min.default: lambda x, c: (A.maximum.default, (x, c)),
    A.full_like.default: lambda x, c: (A.expand_as.default, (c, x)),
}
"""Operator with numbers → the same with tensors. In place of any that is not here, an inexact number is refused."""


def exact_constants(module: GraphModule) -> None:
    """Replace, in place, the numbers that float32 does not hold in the operators that compute in float64.

    Raises:
        UnusableError: an operator for which there is no form with tensors.
    """
    graph = module.graph
    constants: dict[float, str] = {}
    for node in [n for n in graph.nodes if n.op == "call_function"]:
        inexact = [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, float) and not _fits_float32(a)]
        if not inexact or not _is_float64(node):
            continue
        if node.target not in REWRITES or set(node.kwargs) - {"pin_memory"}:
            raise UnusableError(f"operator {node.target} holds {inexact[0]}, which ONNX would round to float32")
        for value in inexact:
            if value not in constants:
                constants[value] = f"constant_{len(constants)}"
                module.register_buffer(constants[value], torch.tensor(value, dtype=torch.float64))
        with graph.inserting_before(node):
            held = [graph.get_attr(constants[a]) if a in inexact else a for a in node.args]
            target, args = REWRITES[node.target](*held)
            node.replace_all_uses_with(graph.call_function(target, args))
        graph.erase_node(node)
    graph.lint()
    module.recompile()


def _is_float64(node: Node) -> bool:
    tensors = [node, *node.all_input_nodes]
    return any(isinstance(n.meta.get("val"), torch.Tensor) and n.meta["val"].dtype == torch.float64 for n in tensors)


def _fits_float32(value: float) -> bool:
    return value != value or float(torch.tensor(value, dtype=torch.float32)) == value
