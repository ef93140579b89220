"""The eager model as a runner that stays within the memory there is; the fallback of every compiled form."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from triforces_deploy import exchange
from triforces_deploy.errors import UserError
from triforces_deploy.graph import Graph
from triforces_deploy.model import Model
from triforces_deploy.nn import blocks
from triforces_deploy.payloads.base import PayloadInfo, Run
from triforces_deploy.potential import CPU
from triforces_deploy.precision import multiplying


def eager(model: Model, with_embeddings: bool = True, device: torch.device = CPU) -> Run:
    """Evaluate a model in blocks; what exceeds the memory there is at first is computed again instead of kept.

    On a GPU small blocks would leave most of it idle: there the whole is tried first, see :func:`whole_where_it_fits`.

    Args:
        model: on the device.
        with_embeddings: whether features of each stream are returned.
        device: where the model is.
    """
    # Once: later, what this very process has kept of its freed memory would count as taken.
    limit = cache(partial(blocks.memory_limit, device))

    def run(graph: Graph) -> tuple[Tensor, ...]:
        with blocks.using(limit()):
            return model.run(graph, with_embeddings)

    return run if device.type == "cpu" else whole_where_it_fits(partial(model.run, with_embeddings=with_embeddings), run)


def whole_where_it_fits(whole: Run, in_blocks: Run) -> Run:
    """Evaluate at once, and in blocks from the number of edges on for which the device's memory has not sufficed.

    With ``TFDEPLOY_MEMORY`` set always in blocks, which keep what that allows. One of several ranks cannot begin again,
    since the others are half-way through: what does not fit there is a UserError.
    """
    too_many = 0.0 if blocks.VARIABLE in os.environ else math.inf

    def run(graph: Graph) -> tuple[Tensor, ...]:
        nonlocal too_many
        n_edges = graph.edge_vector.shape[0]
        if n_edges < too_many:
            try:
                return whole(graph)
            except torch.OutOfMemoryError as error:
                if not exchange.alone():
                    raise UserError(
                        f"the GPU's memory does not hold {n_edges} edges; set {blocks.VARIABLE}, e.g. 8GiB"
                    ) from error
                too_many = n_edges
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # here, where the failed evaluation's tensors are gone
        return in_blocks(graph)

    return run


def within_memory(compiled: Run, info: PayloadInfo, rebuild: Callable[[], Model], device: torch.device = CPU) -> Run:
    """Run the compiled form where it fits into memory, else the eager model in blocks; the numbers are the same.

    Args:
        compiled: the payload, which holds all edges of all layers at once.
        info: its ``details`` tell ``bytes_per_edge`` and ``bytes_per_atom``; those of format 1 did not, and always run.
        rebuild: the eager model on the device, asked for when first needed.
        device: where both run.
    """
    per_edge, per_atom = (info.details.get(key, 0.0) for key in ("bytes_per_edge", "bytes_per_atom"))
    limit = cache(partial(blocks.memory_limit, device))
    blocked = cache(lambda: eager(rebuild(), len(info.outputs) > 2, device))

    def run(graph: Graph) -> tuple[Tensor, ...]:
        needed = graph.edge_vector.shape[0] * per_edge + graph.numbers.shape[0] * per_atom
        if needed <= limit():
            return compiled(graph)
        with multiplying(info.precision, casting=True):  # which the compiled form does by itself
            return blocked()(graph)

    return run
