"""ONNX: data, not code, run by ONNX Runtime; free of scatter, so that any number of threads gives the same bits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triforces_deploy.graph import Graph, count_elements
from triforces_deploy.payloads.base import INPUTS, OUTPUTS, UNCERTAINTY, Backend, PayloadInfo, Run, UnusableError, flat_inputs

TABLES = ("edges_of_centre", "edges_of_neighbour", "atoms_of_structure")
"""Inputs that ONNX takes besides ``INPUTS`` and ``cell``: which edges or atoms each sum adds up; see :func:`padded_table`."""

Arrays = dict[str, NDArray[Any]]


def output_name(name: str) -> str:
    """What the model calls an output of ``PayloadInfo.outputs``; a stream has the name of an input."""
    return name if name in (*OUTPUTS, UNCERTAINTY) else f"embedding_{name}"


def padded_table(index: Tensor, n_rows: int) -> Tensor:
    """Positions of each value in ``index``, in order.

    Args:
        index: (K,) int64, 0 … n_rows−1.
        n_rows: number of rows of the table.

    Returns:
        (n_rows, M) int64, M the largest number of positions of any value, at least 1; rows are filled up with K.
    """
    counts = torch.bincount(index, minlength=n_rows)
    slots = torch.arange(max(int(counts.max()) if n_rows else 0, 1))
    place = (counts.cumsum(0) - counts)[:, None] + slots
    order = torch.cat([torch.argsort(index, stable=True), torch.tensor([index.shape[0]])])
    return order[torch.where(slots < counts[:, None], place, index.shape[0])]


def tables(graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors of ``TABLES``."""
    n_atoms, n_structures = graph.numbers.shape[0], graph.composition.shape[0]
    neighbour, centre = graph.edge_index.unbind(0)
    return padded_table(centre, n_atoms), padded_table(neighbour, n_atoms), padded_table(graph.batch, n_structures)


def onnx_inputs(graph: Graph) -> dict[str, Tensor]:
    """Every input of the ONNX graph by name, in order."""
    plain = dict(zip(INPUTS, flat_inputs(graph), strict=True))
    return {**plain, "cell": graph.cell, **dict(zip(TABLES, tables(graph), strict=True))}


def runner(content: bytes, precision: str) -> Callable[[Arrays, tuple[str, ...]], list[NDArray[Any]]]:
    """ONNX Runtime on a model: (inputs by name, names of outputs) → outputs.

    On the GPU where this ONNX Runtime has one, else on as many threads as torch uses now.

    Raises:
        UnusableError: no ONNX Runtime here, or it refuses the model.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UnusableError("needs ONNX Runtime; pip install 'triforces-deploy[onnx]'") from error

    def session(threads: int) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if precision == "float64":
            # Beyond basic it may fuse a scale into a product as a float32 number.
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        wanted = providers(onnxruntime.get_available_providers(), precision)
        made = onnxruntime.InferenceSession(content, options, providers=wanted)
        if len(made.get_providers()) < len(wanted):
            print("triforces-deploy: ONNX Runtime finds no usable GPU and runs on the CPU", file=sys.stderr, flush=True)
        return made

    threads = torch.get_num_threads()
    try:
        current = {threads: session(threads)}
    except Exception as error:  # its exceptions share no base class
        raise UnusableError(f"ONNX Runtime refuses the model: {str(error).splitlines()[0]}") from error

    def run(inputs: Arrays, outputs: tuple[str, ...]) -> list[NDArray[Any]]:
        threads = torch.get_num_threads()
        if threads not in current:  # their number is fixed when a session is made
            current.clear()
            current[threads] = session(threads)
        found: list[NDArray[Any]] = current[threads].run(outputs, inputs)
        return found

    return run


def providers(available: list[str], precision: str) -> list[Any]:
    """What ONNX Runtime is asked to run on: CUDA where this build has it, and the CPU for the rest.

    Args:
        available: providers of this build.
        precision: TF32, which CUDA would use unasked, is for the precision of that name alone.
    """
    options = {"use_tf32": int(precision == "tf32")}
    return [*((name, options) for name in available if name == "CUDAExecutionProvider"), "CPUExecutionProvider"]


def _open(info: PayloadInfo, content: bytes, _device: torch.device) -> Run:
    call, names = runner(content, info.precision), tuple(output_name(name) for name in info.outputs)

    def run(graph: Graph) -> tuple[Tensor, ...]:
        if graph.numbers.shape[0] == 0:  # ONNX Runtime fails on tensors without rows
            return tuple(t[:0] for t in run(_one_atom()))
        inputs = {name: tensor.cpu().numpy() for name, tensor in onnx_inputs(graph).items()}
        return tuple(torch.from_numpy(np.asarray(a)).to(graph.numbers.device) for a in call(inputs, names))

    return run


def _one_atom() -> Graph:
    """A graph that every model can evaluate."""
    numbers = torch.ones(1, dtype=torch.int64)
    return Graph(
        numbers=numbers,
        edge_index=torch.zeros(2, 0, dtype=torch.int64),
        edge_vector=torch.zeros(0, 3, dtype=torch.float64),
        batch=torch.zeros_like(numbers),
        owned=torch.ones(1, dtype=torch.bool),
        composition=count_elements(numbers, torch.zeros_like(numbers), 1),
        cell=torch.zeros(1, 3, 3, dtype=torch.float64),
    )


BACKEND = Backend(code=False, exchanges=False, open=_open)
