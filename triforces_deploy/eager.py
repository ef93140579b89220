"""The eager model as a runner that stays within the memory there is; the fallback of every compiled form."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
from torch import Tensor

from triforces_deploy import exchange
from triforces_deploy.allocator import give_back_large_blocks
from triforces_deploy.errors import UserError
from triforces_deploy.graph import Graph, count_elements
from triforces_deploy.memory import VARIABLE, Memory, Need
from triforces_deploy.model import Model
from triforces_deploy.nn import blocks
from triforces_deploy.payloads.base import OUTPUTS, PayloadInfo, Run
from triforces_deploy.peak import peak_bytes
from triforces_deploy.potential import Potential
from triforces_deploy.precision import multiplying

PIECES_OF_BLOCKS, PIECES_OF_A_WHOLE = 8, 2
"""How many times its need an evaluation may come to take where nothing that was freed is given back; 7 and 1.5 were seen."""
GPU_BLOCK_BYTES = 256 * 2**20
"""Of the widest tensor of a block on a GPU, where a block must keep thousands of threads busy."""
SAMPLE = 128, 128
"""Atoms and edges of the graphs from which the need of a model in blocks is found."""
EVERYTHING = 2**62
"""Bytes that no evaluation keeps."""
_needs: dict[str, Need] = {}
"""By sizes, type and layers of the network, for weights do not matter, and by what is kept."""


def eager(model: Model, memory: Memory, extras: Sequence[str] = ()) -> Run:
    """Evaluate a model in blocks; what exceeds the memory that these leave is computed again instead of kept.

    On a GPU small blocks would leave most of it idle: there the whole is tried first, see :func:`whole_where_it_fits`.

    Args:
        model: on the device of the memory.
        memory: what it may take.
        extras: what it returns besides energies and edge forces, of ``model.extras()``.
    """
    on_cpu = memory.device.type == "cpu"

    def run(graph: Graph) -> tuple[Tensor, ...]:
        keep, everything = memory.limit(), True
        if memory.blocked is not None:
            atoms, edges = graph.numbers.shape[0], graph.edge_vector.shape[0]
            need = memory.blocked().bytes(atoms, edges)
            everything = need_in_blocks(model, EVERYTHING).bytes(atoms, edges) <= keep
            keep = max(0, keep - int(need))
            _make_room(PIECES_OF_BLOCKS * need, memory)
        with blocks.using(keep, None if on_cpu else GPU_BLOCK_BYTES, everything):
            return model.run(graph, extras)

    return run if on_cpu else whole_where_it_fits(partial(model.run, extras=extras), run)


def as_trained(model: Model) -> Potential:
    """A model on the CPU as a potential, with nothing converted: also with a readout or heads that export does not take."""
    memory, extras = Memory(blocked=partial(need_in_blocks, model)), model.extras()
    return Potential(model.facts(), eager(model, memory, extras), "eager", (*OUTPUTS, *extras), memory=memory)


def whole_where_it_fits(whole: Run, in_blocks: Run) -> Run:
    """Evaluate at once, and in blocks from the number of edges on for which the device's memory has not sufficed.

    With ``TFDEPLOY_MEMORY`` set always in blocks, which keep what that allows. One of several ranks cannot begin again,
    since the others are half-way through: what does not fit there is a UserError.
    """
    too_many = 0.0 if VARIABLE in os.environ else math.inf

    def run(graph: Graph) -> tuple[Tensor, ...]:
        nonlocal too_many
        n_edges = graph.edge_vector.shape[0]
        if n_edges < too_many:
            try:
                return whole(graph)
            except torch.OutOfMemoryError as error:
                if not exchange.alone():
                    raise UserError(f"the GPU's memory does not hold {n_edges} edges; set {VARIABLE}, e.g. 8GiB") from error
                too_many = n_edges
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # here, where the failed evaluation's tensors are gone
        return in_blocks(graph)

    return run


def within_memory(compiled: Run, info: PayloadInfo, memory: Memory, rebuild: Callable[[], Model]) -> Run:
    """Run the compiled form where it fits into memory, else the eager model in blocks; the numbers are the same.

    Args:
        compiled: the payload, which holds all edges of all layers at once.
        info: its description.
        memory: what it needs and may take; asked at every evaluation, because systems grow.
        rebuild: the eager model, asked for when first needed.
    """
    blocked = cache(lambda: eager(rebuild(), memory, info.outputs[len(OUTPUTS) :]))

    def run(graph: Graph) -> tuple[Tensor, ...]:
        atoms, edges = graph.numbers.shape[0], graph.edge_vector.shape[0]
        if memory.fits(atoms, edges):
            if memory.whole is not None:
                _make_room(PIECES_OF_A_WHOLE * memory.whole.bytes(atoms, edges), memory)
            return compiled(graph)
        with multiplying(info.precision, casting=True):  # which the compiled form does by itself
            return blocked()(graph)

    return run


def _make_room(most: float, memory: Memory) -> None:
    """Keep the allocator from holding several times what is needed, where that would be more than there is."""
    if memory.device.type == "cpu" and most > memory.limit():
        give_back_large_blocks()


def need_of(info: PayloadInfo) -> Need | None:
    """What a payload says that it needs; those of format 1 did not."""
    if "bytes_per_edge" not in info.details:
        return None
    return Need(info.details["bytes_per_edge"], info.details["bytes_per_atom"])


def need_in_blocks(model: Model, keeping: int = 0) -> Need:
    """What a model takes that is evaluated in small blocks; the least where they keep nothing for the backward pass.

    Blocks themselves take a few tens of megabytes more, whatever the size of the system.
    """
    atoms, edges = SAMPLE

    def peak(n_atoms: int, n_edges: int) -> int:
        graph = arbitrary_graph(model, n_atoms, n_edges)
        # The evaluation before which this is asked may be one of several ranks', who must not notice.
        with blocks.using(keeping, block_bytes=0), exchange.using(exchange.Recorder()):
            return peak_bytes(lambda: model.run(graph))

    kinds = sorted({type(module).__name__ for module in model.modules()})
    key = f"{model.config} {model.head.dtype} {kinds} {keeping}"
    if key not in _needs:
        base = peak(atoms, edges)
        _needs[key] = Need(max(0, peak(atoms, 2 * edges) - base) / edges, max(0, peak(2 * atoms, edges) - base) / atoms)
    return _needs[key]


def arbitrary_graph(model: Model, n_atoms: int, n_edges: int) -> Graph:
    """Atoms of all elements with neighbours anywhere, always the same: as much work as a structure of that size."""
    index = torch.arange(n_edges)
    numbers = torch.tensor(model.config.numbers())[torch.arange(n_atoms) % len(model.config.elements)]
    length = model.config.cutoff * (0.6 + 0.3 * index.to(torch.float64).sin().square())
    direction = torch.stack([index.sin(), index.cos(), 0.1 + index % 3], dim=1).to(torch.float64)
    batch = torch.zeros(n_atoms, dtype=torch.int64)
    return Graph(
        numbers=numbers,
        edge_index=torch.stack([(7 * index + 1) % n_atoms, index % n_atoms]),
        edge_vector=(length / direction.norm(dim=1))[:, None] * direction,
        batch=batch,
        owned=torch.ones(n_atoms, dtype=torch.bool),
        composition=count_elements(numbers, batch, 1),
        cell=torch.zeros(1, 3, 3, dtype=torch.float64),
    )
