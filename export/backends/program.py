"""The torch.export program of the captured graph, with dynamic numbers of atoms, edges and structures."""

from __future__ import annotations

import io

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.fx.graph import CodeGen

from triforces_deploy.graph import Graph
from triforces_deploy.payloads.base import Payload, flat_inputs
from triforces_deploy.payloads.program import load_program
from triforces_deploy.potential import Facts

from .base import Captured, Lowered


def program(captured: Captured) -> ExportedProgram:
    """The flat graph as torch.export sees it; any size from zero up."""
    n_atoms, n_edges, n_structures = (torch.export.Dim(name, min=0) for name in ("N", "E", "G"))
    shapes = ({0: n_atoms}, {1: n_edges}, {0: n_edges}, {0: n_atoms}, {0: n_atoms}, {0: n_structures})
    return torch.export.export(captured.module, flat_inputs(captured.example), dynamic_shapes=shapes)


def captured_in(payload: Payload, example: Graph, facts: Facts) -> Captured:
    """The graph that :func:`lower` has saved, as the other back ends take it; UnusableError where torch cannot read it.

    Args:
        payload: of a trusted file.
        example: as for the capture it came from.
        facts: what it is.
    """
    module = load_program(payload.content).module()
    graph = module.graph
    for node in [node for node in graph.nodes if node.op == "call_module"]:
        graph.erase_node(node)  # asserts the sizes that every Graph has
    graph.set_codegen(CodeGen())  # inputs and outputs are flat, as they were at the capture
    flat = GraphModule(module, graph)
    details = payload.info.details
    return Captured(
        flat, example, payload.info.outputs, facts, details["bytes_per_edge"], details["bytes_per_atom"], details["lean"]
    )


def lower(captured: Captured) -> Lowered:
    """The program itself, from which the other forms can be made later, also by other programs."""
    buffer = io.BytesIO()
    torch.export.save(program(captured), buffer)
    return Lowered(buffer.getvalue())
