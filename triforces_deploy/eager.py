"""The eager model as a runner that stays within the memory there is; the fallback of every compiled form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from torch import Tensor

from triforces_deploy.graph import Graph
from triforces_deploy.model import Model
from triforces_deploy.nn import blocks
from triforces_deploy.payloads.base import OUTPUTS, PayloadInfo, Run
from triforces_deploy.precision import multiplying


def eager(model: Model, extras: Sequence[str] = ()) -> Run:
    """Evaluate a model in blocks; what exceeds the memory there is at first is computed again instead of kept.

    Args:
        model: what runs.
        extras: what it returns besides energies and edge forces, of ``model.extras()``.
    """
    limit = cache(blocks.memory_limit)  # once: later, what this very process has kept of its freed memory would count as taken

    def run(graph: Graph) -> tuple[Tensor, ...]:
        with blocks.using(limit()):
            return model.run(graph, extras)

    return run


def within_memory(compiled: Run, info: PayloadInfo, rebuild: Callable[[], Model]) -> Run:
    """Run the compiled form where it fits into memory, else the eager model in blocks; the numbers are the same.

    Args:
        compiled: the payload, which holds all edges of all layers at once.
        info: its ``details`` tell ``bytes_per_edge`` and ``bytes_per_atom``; those of format 1 did not, and always run.
        rebuild: the eager model, asked for when first needed.
    """
    per_edge, per_atom = (info.details.get(key, 0.0) for key in ("bytes_per_edge", "bytes_per_atom"))
    limit = cache(blocks.memory_limit)
    blocked = cache(lambda: eager(rebuild(), info.outputs[len(OUTPUTS) :]))

    def run(graph: Graph) -> tuple[Tensor, ...]:
        needed = graph.edge_vector.shape[0] * per_edge + graph.numbers.shape[0] * per_atom
        if needed <= limit():
            return compiled(graph)
        with multiplying(info.precision, casting=True):  # which the compiled form does by itself
            return blocked()(graph)

    return run
