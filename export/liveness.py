"""How much memory a captured graph takes: the most that is alive at once, as bytes per edge and per atom."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

ATOMS, EDGES_PER_ATOM = 1000, (20, 60)


def bytes_per_row(module: GraphModule) -> tuple[float, float]:
    """Bytes per edge and bytes per atom at the peak; what weights take is not counted.

    Args:
        module: of :func:`triforces_deploy.export.capture.capture`, its nodes carrying the shapes they were recorded with.

    Returns:
        An upper bound for compiled forms, which fuse operations and never store what lies between them.
    """
    few, many = (_peak(module, ATOMS, ATOMS * k) for k in EDGES_PER_ATOM)
    per_edge = (many - few) / (ATOMS * (EDGES_PER_ATOM[1] - EDGES_PER_ATOM[0]))
    return per_edge, max(0.0, (few - per_edge * ATOMS * EDGES_PER_ATOM[0]) / ATOMS)


def _peak(module: GraphModule, n_atoms: int, n_edges: int) -> int:
    nodes = list(module.graph.nodes)
    sizes = _sizes(nodes, n_atoms, n_edges)
    owner = {node: _storage(node) for node in nodes}
    last = {owner[used]: k for k, node in enumerate(nodes) for used in (*node.all_input_nodes, node)}
    ends: dict[int, list[Node]] = {}
    for node, k in last.items():
        ends.setdefault(k, []).append(node)
    alive = peak = 0
    for k, node in enumerate(nodes):
        alive += sizes[node] if owner[node] is node else 0
        peak = max(peak, alive)
        alive -= sum(sizes[ended] for ended in ends.get(k, []))
    return peak


def _storage(node: Node) -> Node:
    """The node whose memory this one shows: itself, or what it is a view of."""
    while isinstance(node.target, torch._ops.OpOverload) and node.target.is_view and node.args:
        base = node.args[0]
        assert isinstance(base, Node)
        node = base
    return node


def _sizes(nodes: list[Node], n_atoms: int, n_edges: int) -> dict[Node, int]:
    """Bytes of every node's tensor for the given numbers of atoms and edges, of one structure."""
    inputs = {node.name: node.meta["val"] for node in nodes if node.op == "placeholder"}
    shapes = [value.shape for value in inputs.values()]
    numbers, edge_index, *_, composition = shapes
    values = {_symbol(numbers[0]): n_atoms, _symbol(edge_index[1]): n_edges, _symbol(composition[0]): 1}
    return {node: _bytes(node.meta.get("val"), values) if node.op == "call_function" else 0 for node in nodes}


def _symbol(size: Any) -> Any:
    return size.node.expr


def _bytes(value: object, values: dict[Any, int]) -> int:
    if isinstance(value, list | tuple):
        return sum(_bytes(v, values) for v in value)
    if not isinstance(value, Tensor):
        return 0
    count = 1
    for size in value.shape:
        count *= size if isinstance(size, int) else int(_symbol(size).subs(values))
    return count * value.element_size()
