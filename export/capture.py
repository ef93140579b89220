"""Energy and forces as one flat graph of tensor operations, with the exchange inside."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from triforces_deploy.derivatives import evaluate
from triforces_deploy.graph import Graph
from triforces_deploy.model import Model
from triforces_deploy.payloads import INPUTS, flat_inputs


def capture(model: Model, example: Graph) -> GraphModule:
    """Record one evaluation, forward and backward, for any number of atoms, edges and structures.

    Args:
        model: in evaluation mode, its parameters needing no gradient.
        example: any graph with several atoms, edges and structures, all different in number.

    Returns:
        Module of the tensors that payloads.INPUTS names → (energies (N,), edge forces (E, 3)).
    """
    cell = torch.zeros(example.composition.shape[0], 3, 3, dtype=torch.float64)

    def flat(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        graph = Graph(cell=cell, **dict(zip(INPUTS, tensors, strict=True)))
        energies, edge_forces = evaluate(model, graph)
        return energies, edge_forces  # a plain tuple: torch.export does not know ours

    with torch.no_grad():
        return make_fx(flat, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*flat_inputs(example))
