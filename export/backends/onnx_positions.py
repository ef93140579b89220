"""ONNX with the neighbour list inside: positions, cell, periodicity and numbers in; energy, forces and stress out.

Three models behind one another: the list (export/constructor.py), the ``onnx`` form, and a guard that turns everything
into NaN where the list does not hold, so that no program can mistake a truncated neighbourhood for a result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from ase.data import atomic_numbers
from torch import Tensor

from triforces_deploy.graph import N_NUMBERS
from triforces_deploy.onnx_positions import inputs, result_names
from triforces_deploy.payloads.base import INPUTS
from triforces_deploy.payloads.onnx import TABLES
from triforces_deploy.potential import Facts

from ..constructor import construct
from ..probes import probe_structures
from .base import Captured, Lowered
from .onnx import graph_model, versions
from .onnx_model import OPSET, describe, to_onnx

if TYPE_CHECKING:
    from onnx import ModelProto

GRAPH = (*INPUTS, "cell", *TABLES)
SHAPES = {"positions": {0: "N"}, "numbers": {0: "N"}}
TEXTS = {
    "inputs": "positions (N, 3) anywhere, cell (3, 3) with lattice vectors as rows, pbc (3), numbers (N); N at least 1",
    "outputs": "energy (), energies (N), forces (N, 3), virial (3, 3), stress (3, 3), which is NaN where there is no volume, "
    "and where the model tells it uncertainty (N), the standard deviation of energies",
    "frozen": "every output is NaN where the cell needs more periodic images than are frozen inside, where an element is not "
    "among atomic_numbers, where two atoms are closer than 0.1 Å, and where a position is not finite",
    "images_rule": "axis k needs floor(cutoff·|d_k| + 1/2) images, d_k the dual of lattice vector k among the periodic ones",
}


def lower(captured: Captured) -> Lowered:
    """The self-contained model for ``captured.images`` periodic images each way.

    Raises:
        UnusableError: onnx is not installed, or the model has a part that ONNX does not.
    """
    graph = graph_model(captured)
    outputs = result_names(captured.outputs)
    model = _joined(_list_model(captured.facts, captured.images), graph, _guard_model(outputs), outputs)
    texts = {**TEXTS, "images": str(captured.images)}
    describe(model, captured.facts, texts)
    details = {"opset": OPSET, "images": captured.images, "cutoff": captured.facts.cutoff, **versions()}
    return Lowered(model.SerializeToString(), details=details)


def _list_model(facts: Facts, images: int) -> ModelProto:
    """Positions to the inputs of the plain form, and whether they hold."""
    known_numbers = torch.tensor([atomic_numbers[symbol] for symbol in (facts.reference or facts.elements)])
    reference = torch.zeros(1, N_NUMBERS, dtype=torch.float64)
    reference[0, [atomic_numbers[symbol] for symbol in facts.reference]] = torch.tensor([*facts.reference.values()]).double()
    atoms = probe_structures(facts.elements)["molecule"]
    example = {name: torch.from_numpy(array) for name, array in inputs(atoms).items()}

    def listed(positions: Tensor, cell: Tensor, pbc: Tensor, numbers: Tensor) -> tuple[Tensor, ...]:
        found = construct(positions, cell, pbc, facts.cutoff, images)
        counted = (numbers[:, None] == torch.arange(N_NUMBERS)).to(torch.float64).sum(0, keepdim=True)
        given = {
            **found._asdict(),
            "numbers": numbers.clone(),
            "batch": torch.zeros_like(numbers),
            "owned": numbers >= 0,
            "composition": reference.clone() if facts.reference else counted,
            "cell": cell[None],
            "atoms_of_structure": torch.arange(numbers.shape[0])[None],
        }
        known = (numbers[:, None] == known_numbers).any(1).all()
        return (*(given[name] for name in GRAPH), found.valid & known)

    return to_onnx(listed, example, SHAPES, [*(f"listed_{name}" for name in GRAPH), "valid"])


def _guard_model(outputs: Sequence[str]) -> ModelProto:
    """What the plain form returns for one structure, without the axis of structures, or NaN where not ``valid``."""
    n_atoms = 5
    of_atoms = {"energies": (n_atoms,), "forces": (n_atoms, 3), "uncertainty": (n_atoms,)}
    known: dict[str, tuple[int, ...]] = {"energy": (1,), **of_atoms, "virial": (1, 3, 3), "stress": (1, 3, 3)}
    shapes = {name: known[name] for name in outputs}
    example = {f"raw_{name}": torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}

    def guarded(valid: Tensor, *raw: Tensor) -> tuple[Tensor, ...]:
        held = [torch.where(valid, t, torch.full_like(t, float("nan"))) for t in raw]
        return tuple(t if shape[0] == n_atoms else t[0] for t, shape in zip(held, shapes.values(), strict=True))

    dynamic = {f"raw_{name}": {0: "N"} for name in of_atoms if name in outputs}
    return to_onnx(guarded, {"held": torch.tensor(True), **example}, dynamic, list(shapes))


def _joined(listing: ModelProto, graph: ModelProto, guard: ModelProto, outputs: Sequence[str]) -> ModelProto:
    """One behind the other; names inside each are set apart."""
    from onnx import compose

    inner = compose.add_prefix(graph, "graph_")
    first = compose.merge_models(
        compose.add_prefix(listing, "list_", rename_inputs=False, rename_outputs=False),
        inner,
        io_map=[(f"listed_{name}", f"graph_{name}") for name in GRAPH],
        outputs=["valid", *(f"graph_{name}" for name in outputs)],
    )
    return compose.merge_models(
        first,
        compose.add_prefix(guard, "guard_", rename_inputs=False, rename_outputs=False),
        io_map=[("valid", "held"), *((f"graph_{name}", f"raw_{name}") for name in outputs)],
        outputs=list(outputs),
    )
