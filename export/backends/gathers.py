"""Sums over edges and atoms without scatter: gather and sum over padded tables of row numbers.

ONNX Runtime adds repeated indices in parallel without a lock: with more than one thread its forces are silently wrong.
A sum that reads its own table is written by one thread, always in the same order, and gives the same bits on any number.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from triforces_deploy.nn.scatter import OPERATOR
from triforces_deploy.payloads.base import INPUTS, UnusableError
from triforces_deploy.payloads.onnx import TABLES, padded_table

REAL = "real"
"""(E+1, 1) float64: one for an edge, zero for the dummy edge at the end."""
COPIES = (torch.ops.aten.detach.default, torch.ops.aten.clone.default, torch.ops.aten.alias.default)
ZEROS = (torch.ops.aten.zeros.default, torch.ops.aten.new_zeros.default, torch.ops.aten.zeros_like.default)


def gather_sum(values: Tensor, table: Tensor, dim: int = 0) -> Tensor:
    """Rows of ``values`` summed as a table says.

    Args:
        values: (K, …).
        table: (N, M) row numbers, K for none.
        dim: the axis of ``values`` that holds the rows.

    Returns:
        (N, …).
    """
    shape = list(values.shape)
    shape[dim] = 1
    return _summed(torch.cat([values, values.new_zeros(shape)], dim), table, dim)


def gather_sum_of_edges(values: Tensor, table: Tensor, real: Tensor) -> Tensor:
    """The same where the last of K+1 rows is the dummy edge's, which is cleared to stand for none: one copy saved."""
    return _summed(values * real.to(values.dtype).view(-1, *[1] * (values.dim() - 1)), table, 0)


def _summed(rows: Tensor, table: Tensor, dim: int) -> Tensor:
    """The first terms of all sums, then the second, and so on.

    Along an inner axis ONNX Runtime is slower, and adds up in another order where there are fewer sums than threads.
    """
    n_rows, width = table.shape
    if width == 1:
        return rows.index_select(dim, table.flatten())
    return cast(Tensor, rows.index_select(dim, table.t().flatten()).unflatten(dim, (width, n_rows))).sum(dim)


def without_scatter(module: GraphModule) -> GraphModule:
    """A captured graph whose sums read tables; those of ``payloads.onnx.TABLES`` and ``REAL`` follow its own inputs.

    Args:
        module: tensors of ``payloads.base.INPUTS`` → anything; not changed. The last edge it is given is to be a dummy.

    Raises:
        UnusableError: it sums by an index that is neither a row of ``edge_index``, nor ``batch``, nor constant.
    """
    graph = Graph()
    copied: dict[Node, Any] = {}
    graph.output(graph.graph_copy(module.graph, copied))
    named = dict(zip(INPUTS, (node for node in graph.nodes if node.op == "placeholder"), strict=True))
    last = named[INPUTS[-1]]
    for name in (*TABLES, REAL):
        with graph.inserting_after(last):
            named[name] = last = graph.placeholder(name)
    found = GraphModule(module, graph)
    for number, node in enumerate([n for n in graph.nodes if n.target is OPERATOR]):
        with graph.inserting_before(node):
            node.replace_all_uses_with(_replacement(found, number, node, named))
        graph.erase_node(node)
    graph.eliminate_dead_code()
    graph.lint()
    found.recompile()
    return found


def _replacement(module: GraphModule, number: int, node: Node, named: dict[str, Node]) -> Node:
    total, dim, index, values = node.args[:4]
    assert isinstance(total, Node)
    assert isinstance(index, Node)
    assert isinstance(dim, int)
    graph, name = module.graph, _table(index, named)
    if index.op == "get_attr":
        # The derivative of a selection by constant indices: its table is constant too.
        module.register_buffer(f"table_{number}", padded_table(attrgetter(str(index.target))(module), _width(total, dim)))
        new = graph.call_function(gather_sum, (values, graph.get_attr(f"table_{number}"), dim))
    elif name == "atoms_of_structure" and dim == 0:
        new = graph.call_function(gather_sum, (values, named[name]))
    elif name is not None and dim == 0:
        new = graph.call_function(gather_sum_of_edges, (values, named[name], named[REAL]))
    else:
        raise UnusableError(f"the model sums by an index for which there is no table ({index}); only ONNX needs one")
    return new if total.target in ZEROS else graph.call_function(torch.ops.aten.add.Tensor, (total, new))


def _table(index: Node, named: dict[str, Node]) -> str | None:
    """The table that belongs to an index: a row of ``edge_index``, or ``batch``; None for any other."""
    while index.target in COPIES:
        index = index.args[0]  # type: ignore[assignment]
    if index is named["batch"]:
        return "atoms_of_structure"
    if index.target is torch.ops.aten.select.int and index.args[:2] == (named["edge_index"], 0):
        return ("edges_of_neighbour", "edges_of_centre")[index.args[2]]  # type: ignore[index]
    source = index.args[0] if index.args else None
    unbound = isinstance(source, Node) and source.target is torch.ops.aten.unbind.int
    if unbound and source.args in ((named["edge_index"],), (named["edge_index"], 0)):  # type: ignore[operator,union-attr]
        return ("edges_of_neighbour", "edges_of_centre")[index.args[1]]  # type: ignore[index]
    return None


def _width(total: Node, dim: int) -> int:
    width = total.meta["val"].shape[dim]
    if not isinstance(width, int):
        raise UnusableError(f"the model sums by a constant index into rows whose number is not constant ({total})")
    return width
