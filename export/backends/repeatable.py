"""What else makes the last digit depend on the number of threads, besides sums by scatter, and what is done about it.

Exponentials in float64: ONNX Runtime evaluates them with vector instructions and the end of each thread's share one by one,
with another rounding. Its powers are evaluated one by one throughout, so that exponentials are written as powers of e: as
fast, and wrong by no more than 1e-16 of the exponent. In float32 both ways round alike.

Matrix products: where there are fewer rows than columns, threads share the columns, and the fewer are left to each, the
longer the stretches in which it adds up a row. Matrices that it knows in advance are packed, in float32, and then the
stretches are fixed; so pieces of weights become weights of their own, since it does not look behind a split. In float64
nothing is packed, and products are added up here, in stretches that are never cut.

Sums over an inner axis in float32: where there are fewer rows than threads they are added up in another order, so that the
few terms of such a sum, one for each radial function, are added one by one.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

A = torch.ops.aten
MOST_TERMS = 64
STRETCH = 128
"""Terms of a product that ONNX Runtime adds up in one go, however few columns a thread has."""


def _exp(x: Tensor) -> Tensor:
    return torch.pow(math.e, x) if x.dtype == torch.float64 else NotImplemented


def _sigmoid(x: Tensor) -> Tensor:
    return 1.0 / (1.0 + torch.pow(math.e, -x)) if x.dtype == torch.float64 else NotImplemented


def _silu(x: Tensor) -> Tensor:
    return x / (1.0 + torch.pow(math.e, -x)) if x.dtype == torch.float64 else NotImplemented


def _tanh(x: Tensor) -> Tensor:
    return 1.0 - 2.0 / (1.0 + torch.pow(math.e, 2.0 * x)) if x.dtype == torch.float64 else NotImplemented


def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    if x.dtype != torch.float64 or half_to_float:
        return NotImplemented  # type: ignore[no-any-return]
    exponentials = torch.pow(math.e, x - x.amax(dim, keepdim=True))
    return exponentials / exponentials.sum(dim, keepdim=True)


def _mm(a: Tensor, b: Tensor) -> Tensor:
    length = a.shape[1]
    if a.dtype != torch.float64 or not isinstance(length, int) or length <= STRETCH:
        return NotImplemented  # type: ignore[no-any-return]
    terms = [a[:, k : k + STRETCH] @ b[k : k + STRETCH] for k in range(0, length, STRETCH)]
    return sum(terms[1:], terms[0])


def _addmm(c: Tensor, a: Tensor, b: Tensor) -> Tensor:
    product = _mm(a, b)
    return product if product is NotImplemented else product + c


def _sum(x: Tensor, dim: Sequence[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    if x.dtype == torch.float64 or dtype is not None or dim is None or len(dim) != 1:
        return NotImplemented  # type: ignore[no-any-return]
    axis = dim[0] % x.dim()
    if axis in (0, x.dim() - 1) or not isinstance(x.shape[axis], int) or x.shape[axis] > MOST_TERMS:
        return NotImplemented  # type: ignore[no-any-return]
    first, *rest = x.split(1, axis) if keepdim else x.unbind(axis)
    return sum(rest, first)


def split_weights(module: GraphModule) -> None:
    """Make, in place, weights of their own of the pieces that splits of weights give."""
    graph = module.graph
    for node in [n for n in graph.nodes if n.target is A.split.Tensor and n.args[0].op == "get_attr"]:
        weight, *rest = node.args
        pieces = A.split.Tensor(attrgetter(weight.target)(module), *rest)
        for user in list(node.users):
            assert user.target is operator.getitem
            name = f"{weight.target}_{'_'.join(map(str, (*rest, user.args[1])))}".replace(".", "_").replace("-", "m")
            module.register_buffer(name, pieces[user.args[1]].contiguous())
            with graph.inserting_before(user):
                user.replace_all_uses_with(graph.get_attr(name))
            graph.erase_node(user)
        graph.erase_node(node)
    graph.lint()
    module.recompile()


REPEATABLE: dict[Any, Callable[..., Any]] = {
    A.exp.default: _exp,
    A.sigmoid.default: _sigmoid,
    A.silu.default: _silu,
    A.tanh.default: _tanh,
    A._softmax.default: _softmax,
    A.mm.default: _mm,
    A.addmm.default: _addmm,
    A.sum.dim_IntList: _sum,
}
"""Operator → what it becomes in the type that needs it; the other keeps it."""
