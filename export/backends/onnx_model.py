"""A function of tensors, already differentiated, as an ONNX model."""

from __future__ import annotations

import itertools
import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from triforces_deploy.payloads.base import INPUTS, UnusableError
from triforces_deploy.payloads.onnx import TABLES
from triforces_deploy.potential import Facts

from .exact import exact_constants
from .repeatable import REPEATABLE, split_weights

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

OPSET = 20
A = torch.ops.aten


def evaluate(module: GraphModule, given: Mapping[str, Tensor], cutoff: float) -> tuple[Tensor, ...]:
    """Call what :func:`gathers.without_scatter` made, with a dummy edge behind the others.

    ONNX Runtime fails on tensors without rows, so that atoms without any neighbour need it. It stands in no table and
    changes nothing; at twice the cutoff every function of it is finite.

    Args:
        module: the model.
        given: tensors by the names of ``INPUTS`` and ``TABLES``.
        cutoff: Å.

    Returns:
        What the module returns, without the dummy edge.
    """
    index, vector = given["edge_index"], given["edge_vector"]
    zero = torch.zeros(2, 1, dtype=torch.int64)
    dummy = torch.tensor([[2.0 * cutoff, 0.0, 0.0]], dtype=torch.float64)
    ended = {
        **given,
        "edge_index": torch.cat([index, zero], 1),
        "edge_vector": torch.cat([vector, dummy]),
        "real": torch.cat([torch.ones_like(vector[:, 0]), torch.zeros(1, dtype=torch.float64)]),
    }
    energies, edge_forces, *rest = module(*(ended[name] for name in (*INPUTS, *TABLES, "real")))
    return (energies, edge_forces[:-1], *rest)


def to_onnx(
    function: Callable[..., tuple[Tensor, ...]],
    example: Mapping[str, Tensor],
    shapes: Mapping[str, dict[int, str]],
    outputs: Sequence[str],
) -> ModelProto:
    """Record a function and translate it.

    Args:
        function: tensors in the order of ``example`` → those that ``outputs`` names.
        example: inputs by name.
        shapes: name of an input → axis → name of its size, where it is dynamic.
        outputs: names of outputs.

    Raises:
        UnusableError: no onnx here, or an operator it does not have.
    """
    try:
        import onnxscript  # noqa: F401 - what torch.onnx needs
    except ImportError as error:
        raise UnusableError("needs onnx and onnxscript; pip install 'triforces-deploy[onnx]'") from error
    names = {size for axes in shapes.values() for size in axes.values()}
    sizes = {name: torch.export.Dim(name, min=0) for name in sorted(names)}
    dynamic = tuple({axis: sizes[size] for axis, size in shapes.get(name, {}).items()} for name in example)
    with torch.no_grad(), _quiet():
        module = make_fx(function, decomposition_table=decompositions(), tracing_mode="symbolic", _allow_non_fake_inputs=True)(
            *example.values()
        )
        exact_constants(module)
        split_weights(module)
        program = torch.export.export(module, tuple(example.values()), dynamic_shapes=dynamic)
        try:
            made = torch.onnx.export(
                program,
                input_names=list(example),
                output_names=list(outputs),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
                optimize=False,  # its rewriting takes longer than all the rest, and ONNX Runtime folds constants itself
            )
        except torch.onnx.OnnxExporterError as error:
            raise UnusableError(f"ONNX: {_last_line(error)}") from error
    assert made is not None
    model = _tidy(made, shapes)
    refuse_scatter(model)
    return model


def _tidy(made: torch.onnx.ONNXProgram, shapes: Mapping[str, dict[int, str]]) -> ModelProto:
    """Without repeated work, without traces of this machine's files, and with sizes called by their names."""
    from onnx_ir.passes import common

    for tidying in (
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.ClearMetadataAndDocStringPass(),
    ):
        tidying(made.model)
    model = made.model_proto
    del model.graph.value_info[:]
    inputs = {v.name: v.type.tensor_type.shape.dim for v in model.graph.input}
    called = {inputs[name][axis].dim_param: size for name, axes in shapes.items() for axis, size in axes.items()}
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in called:
                dim.dim_param = called[dim.dim_param]
    return model


def refuse_scatter(model: ModelProto) -> None:
    """UnusableError where a sum over repeated indices is left: ONNX Runtime's threads race in it."""
    for node in _nodes(model.graph.node, *(function.node for function in model.functions)):
        reduction = [a.s for a in node.attribute if a.name == "reduction"]
        if node.op_type.startswith("Scatter") and reduction not in ([], [b"none"]):
            raise UnusableError(f"the ONNX graph sums by {node.op_type}, whose result depends on the number of threads")


def _nodes(*parts: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """All nodes, those of branches and loop bodies too."""
    for node in itertools.chain(*parts):
        yield node
        inner = [g for a in node.attribute for g in (*a.graphs, *([a.g] if a.HasField("g") else []))]
        yield from _nodes(*(graph.node for graph in inner))


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Operators of derivatives that ONNX does not have, in those that it has."""
    table = torch._decomp.get_decompositions(
        [
            A.silu_backward,
            A.sigmoid_backward,
            A.tanh_backward,
            A.gelu_backward,
            A._softmax_backward_data,
            A.native_layer_norm,  # ONNX Runtime's own fails to load in float64
            A.native_layer_norm_backward,
            A.detach,
            A._to_copy,
            A.rsub,
        ]
    )
    exchange = torch.ops.triforces.exchange.default, torch.ops.triforces.exchange_adjoint.default
    ours: dict[Any, Callable[..., Any]] = {
        A.slice_backward.default: _slice_backward,
        A.select_backward.default: _select_backward,
    }
    one_rank = dict.fromkeys(exchange, torch.clone)  # nothing to exchange
    return {**table, **ours, **REPEATABLE, **one_rank}


def _slice_backward(g: Tensor, sizes: Sequence[int], dim: int, start: int, end: int, step: int) -> Tensor:
    """Zeros before and after; torch's own writes into zeros, which becomes a scatter."""
    if step != 1:
        raise UnusableError("the derivative of a slice with a step has no form in ONNX")
    before, length = start, g.shape[dim]
    if _covers(start, end):
        return g.clone()
    return _padded(g, sizes[dim] - before - length, before, dim)


def _select_backward(g: Tensor, sizes: Sequence[int], dim: int, index: int) -> Tensor:
    before = index if index >= 0 else sizes[dim] + index
    return _padded(g.unsqueeze(dim), sizes[dim] - before - 1, before, dim)


def _covers(start: int, end: int) -> bool:
    return start == 0 and isinstance(end, int) and end >= 2**63 - 1


def _padded(g: Tensor, after: int, before: int, dim: int) -> Tensor:
    def zeros(n: int) -> Tensor:
        shape = list(g.shape)
        shape[dim] = n
        return g.new_zeros(shape)

    return torch.cat([zeros(before), g, zeros(after)], dim)


def describe(model: ModelProto, facts: Facts, texts: Mapping[str, str]) -> None:
    """Write into the model what a program that has nothing but the model must know."""
    from onnx import helper

    plain = {
        "units": "Å, eV, eV/Å, eV/Å³; stress in ASE's sign",
        "elements": " ".join(facts.elements),
        "atomic_numbers": " ".join(map(str, facts.element_numbers())),
        "cutoff": repr(facts.cutoff),
        "precision": facts.precision,
        "policies": json.dumps(facts.policies),
    }
    if facts.precision == "float64":
        plain["optimization"] = "basic at most: beyond, ONNX Runtime may fuse a scale into a product as a float32 number"
    helper.set_model_props(model, {**plain, **texts})


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on its own internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _last_line(error: Exception) -> str:
    return next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
