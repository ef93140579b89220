"""Energy, forces and stress as one captured graph that torch compiles, so that a loss of forces needs one derivative only.

torch.compile cannot differentiate twice. Here the first derivative, by the edge vectors, is captured together with the energy,
operator by operator and with sizes left open, as a function of the parameters and the batch; what is compiled is that function.
Its gradients are compared with those of the model itself before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config
from torch.fx.experimental.proxy_tensor import make_fx

from triforces_deploy.errors import UserError
from triforces_deploy.graph import Graph
from triforces_deploy.training.objective import Prediction, predict

BACKEND = "inductor"
ALLOWED = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Difference of gradients over the largest of them; sums in another order, through two derivatives."""
Captured = Callable[[Sequence[Tensor], tuple[Tensor, ...]], tuple[Tensor, ...]]


class CompiledPredict:
    """:func:`~triforces_deploy.training.objective.predict` of one model for training, captured anew only where it must be.

    The energy must be a sum over atoms: other readouts stop derivatives on purpose, and capture cannot tell those places from
    the ones that it has to undo.
    """

    def __init__(self) -> None:
        self.captured: dict[tuple[bool, ...], Captured] = {}
        """By which sizes are 0 or 1, for which a captured graph takes shortcuts; atoms, edges, structures."""

    def __call__(self, model: nn.Module, graph: Graph) -> Prediction:
        """See ``predict``; UserError where this torch cannot compile the model, or gives other gradients."""
        sizes = (graph.numbers.shape[0], graph.edge_index.shape[1], graph.composition.shape[0])
        key = tuple(size == few for size in sizes for few in (0, 1))
        parameters = list(model.parameters())
        if key not in self.captured:
            self.captured[key] = _compiled(model, parameters, graph)
        return Prediction(*self.captured[key](parameters, tuple(graph)))


def _compiled(model: nn.Module, parameters: list[nn.Parameter], graph: Graph) -> Captured:
    try:
        found: Captured = torch.compile(_capture(model, parameters, graph), backend=BACKEND, dynamic=True)
        given = _gradients(Prediction(*found(parameters, tuple(graph))), parameters)
    except Exception as error:  # a compiler fails in its own way for every operator
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"trainer.compile: this model cannot be compiled here ({why}); set it to false") from error
    expected = _gradients(predict(model, graph, create_graph=True), parameters)
    deviation = float((given - expected).abs().max() / expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny))
    allowed = ALLOWED[parameters[0].dtype]
    if not deviation <= allowed:
        raise UserError(
            f"trainer.compile: compiled gradients differ from the model's own by {deviation:.0e} of the largest, allowed are "
            f"{allowed:.0e}; set it to false"
        )
    return found


def _capture(model: nn.Module, parameters: list[nn.Parameter], graph: Graph) -> Any:
    """A module of plain operators: parameters and the fields of a graph → energy, forces, stress."""
    names = [name for name, _ in model.named_parameters()]

    def function(given: list[Tensor], tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        def energies_of(at: Graph) -> Tensor:
            found: Tensor = torch.func.functional_call(model, dict(zip(names, given, strict=True)), (at,))
            return found

        return tuple(predict(energies_of, Graph(*tensors), create_graph=True))

    own = [p.detach().requires_grad_(True) for p in parameters]
    # Sizes that happen to be equal, such as 3 structures and 3 dimensions, are to stay independent.
    with _config.patch(use_duck_shape=False):  # type: ignore[attr-defined]
        module: Any = make_fx(function, tracing_mode="symbolic", _allow_non_fake_inputs=True)(own, tuple(graph))
    # What a derivative saved of its inputs comes out detached from the parameters, which would lose a part of their gradient.
    for node in list(module.graph.nodes):
        if node.target is torch.ops.aten.detach.default:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    module.recompile()
    return module


def _gradients(prediction: Prediction, parameters: list[nn.Parameter]) -> Tensor:
    """Of a sum of mean squares, by all parameters that learn, side by side."""
    learning = [p for p in parameters if p.requires_grad]
    loss = torch.stack([part.square().mean() for part in prediction]).sum()
    found = torch.autograd.grad(loss, learning, materialize_grads=True, allow_unused=True)
    return torch.cat([g.flatten() for g in found])
