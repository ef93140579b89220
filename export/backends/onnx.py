"""ONNX from the captured graph: a graph in; energies, forces and stress out; on one rank, on any number of threads."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.nn import functional

from triforces_deploy.graph import Graph, collate
from triforces_deploy.payloads.base import OUTPUTS, UnusableError
from triforces_deploy.payloads.onnx import TABLES, onnx_inputs, output_name
from triforces_deploy.precision import PRECISIONS

from .base import Captured, Lowered
from .gathers import gather_sum, without_scatter
from .onnx_model import OPSET, describe, evaluate, to_onnx

if TYPE_CHECKING:
    from onnx import ModelProto

DERIVED = ("energy", "forces", "virial", "stress")
"""What follows from ``OUTPUTS``: (G,) eV, (N, 3) eV/Å, (G, 3, 3) eV, (G, 3, 3) eV/Å³ or NaN where there is no volume."""
SHAPES = {
    "numbers": {0: "N"},
    "edge_index": {1: "E"},
    "edge_vector": {0: "E"},
    "batch": {0: "N"},
    "owned": {0: "N"},
    "composition": {0: "G"},
    "cell": {0: "G"},
    "edges_of_centre": {0: "N", 1: "C"},
    "edges_of_neighbour": {0: "N", 1: "B"},
    "atoms_of_structure": {0: "G", 1: "A"},
}
TEXTS = {
    "inputs": "numbers (N), edge_index (2, E) with the neighbour in row 0 and the centre in row 1, edge_vector (E, 3) from "
    "centre to neighbour with the image shift applied, batch (N) the structure of each atom, owned (N) all true, "
    "composition (G, 119) atoms of each atomic number, cell (G, 3, 3) with lattice vectors as rows or zeros",
    "tables": "edges_of_centre (N, C): numbers of the edges of which each atom is the centre, filled up with E; "
    "edges_of_neighbour (N, B) likewise; atoms_of_structure (G, A): numbers of its atoms, filled up with N; "
    "N, G, C, B and A at least 1",
    "edges": "every pair closer than the cutoff twice, once with each atom as the centre, periodic images included",
}


def lower(captured: Captured) -> Lowered:
    """An ONNX model for any numbers of atoms and structures from one up, and of edges from zero up.

    Raises:
        UnusableError: onnx is not installed, or the model has a part that ONNX does not.
    """
    details: dict[str, Any] = {"opset": OPSET, **versions()}
    model = graph_model(captured)
    described = copy.deepcopy(model)
    describe(described, captured.facts, TEXTS)
    return Lowered(described.SerializeToString(), details=details)


def graph_model(captured: Captured) -> ModelProto:
    """The model without its description; made once for a captured graph, though both ONNX forms hold it."""
    if captured.module not in _made:
        _made[captured.module] = _graph_model(captured)
    return _made[captured.module]


_made: WeakKeyDictionary[GraphModule, ModelProto] = WeakKeyDictionary()


def _graph_model(captured: Captured) -> ModelProto:
    if PRECISIONS[captured.facts.precision].products == "bf16":
        raise UnusableError("ONNX Runtime multiplies no bf16 matrices on a CPU; use float32")
    module = without_scatter(captured.module)
    example = _example(captured.example)

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(example, tensors, strict=True))
        energies, edge_forces, *rest = evaluate(module, given, captured.facts.cutoff)
        return (energies, edge_forces, *derived(energies, edge_forces, given), *rest)

    outputs = (*OUTPUTS, *DERIVED, *(output_name(name) for name in captured.outputs[len(OUTPUTS) :]))
    return to_onnx(flat, example, SHAPES, outputs)


def _example(graph: Graph) -> dict[str, Tensor]:
    """Inputs whose sizes all differ, from each other and from 2 and 3: the recorder takes equal sizes for the same size."""
    inputs = onnx_inputs(collate([graph, graph]))
    sizes = {2, 3, *(inputs[name].shape[0] for name in ("numbers", "edge_vector", "composition"))}
    for name, none in zip(TABLES, ("edge_vector", "edge_vector", "numbers"), strict=True):
        while inputs[name].shape[1] in sizes:
            inputs[name] = functional.pad(inputs[name], (0, 1), value=inputs[none].shape[0])
        sizes.add(inputs[name].shape[1])
    return inputs


def derived(energies: Tensor, edge_forces: Tensor, given: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """The tensors of ``DERIVED`` by sums over tables; the same as :mod:`triforces_deploy.derivatives` in other words."""
    of_centre, of_neighbour, of_structure = (given[name] for name in TABLES)
    forces = gather_sum(edge_forces, of_centre) - gather_sum(edge_forces, of_neighbour)
    outer = given["edge_vector"][:, :, None] * edge_forces[:, None, :]
    outer = 0.5 * (outer + outer.transpose(1, 2))
    virial = gather_sum(gather_sum(outer, of_centre), of_structure)
    return gather_sum(energies, of_structure), forces, virial, virial / volume(given["cell"])[:, None, None]


def volume(cell: Tensor) -> Tensor:
    """(G, 3, 3) Å → (G,) Å³, NaN where it is zero. Determinants are no operator of ONNX Runtime."""
    a, b, c = (row.unbind(1) for row in cell.unbind(1))
    cofactors = (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])
    value = sum((x * y for x, y in zip(cofactors, c, strict=True)), torch.zeros_like(a[0])).abs()
    return torch.where(value > 0, value, torch.full_like(value, float("nan")))


def versions() -> dict[str, str]:
    """Of what made the model."""
    import onnx
    import onnxscript

    return {"onnx": onnx.__version__, "onnxscript": onnxscript.__version__}
