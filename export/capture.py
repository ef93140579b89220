"""Energy and forces as one flat graph of tensor operations, with the exchange inside."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from triforces_deploy.graph import Graph, collate
from triforces_deploy.model import Model
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.nn import blocks
from triforces_deploy.payloads.base import INPUTS, OUTPUTS, flat_inputs
from triforces_deploy.potential import Facts
from triforces_deploy.precision import multiplying

from .backends.base import Captured
from .liveness import bytes_per_row
from .probes import probe_structures


def capture(model: Model, facts: Facts, extras: Sequence[str] = (), lean: bool = False) -> Captured:
    """Record one evaluation, forward and backward, for any number of atoms, edges and structures.

    Args:
        model: in evaluation mode, its parameters needing no gradient.
        facts: what it is, for those who lower it.
        extras: what it returns besides energies and edge forces, of ``model.extras()``.
        lean: keep nothing inside a layer for the backward pass, which computes it again: about two
            thirds of the memory, a third as much time again.
    """
    example = example_graph(model)
    cell = torch.zeros(example.composition.shape[0], 3, 3, dtype=torch.float64)

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
        graph = Graph(cell=cell, **dict(zip(INPUTS, tensors, strict=True)))
        memory = blocks.keeping_nothing() if lean else blocks.without_budget()
        with multiplying(facts.precision, casting=True), memory:
            return tuple(model.run(graph, extras))  # a plain tuple: torch.export knows no other

    with torch.no_grad():
        module = make_fx(flat, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*flat_inputs(example))
    return Captured(module, example, (*OUTPUTS, *extras), facts, *bytes_per_row(module), lean)


def example_graph(model: Model) -> Graph:
    """Two structures whose numbers of atoms, edges and structures all differ, so that capture mixes none of them up."""
    probes = probe_structures(model.config.elements, seed=1)
    return collate([graph_from_atoms(probes[name], model.config.cutoff) for name in ("orthogonal", "molecule")])
