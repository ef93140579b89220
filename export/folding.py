"""Models with less to compute and the same energies: what is frozen becomes part of the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from ase.data import atomic_numbers
from torch import Tensor

from triforces_deploy.building import build
from triforces_deploy.config import ModelConfig, ZBLSwitch
from triforces_deploy.graph import N_NUMBERS
from triforces_deploy.model import Model
from triforces_deploy.streams.composition import CompositionStream


def fold_composition(model: Model, reference: Mapping[str, float]) -> Model:
    """The composition stream as a table: the features that each element has in the reference composition.

    Args:
        model: float64, with a composition stream that is live.
        reference: element → atoms or fractions.
    """
    stream, config = model.composition, model.config.composition
    assert isinstance(stream, CompositionStream)
    assert config is not None
    counts = torch.zeros(1, N_NUMBERS, dtype=torch.float64)
    for symbol, count in reference.items():
        counts[0, atomic_numbers[symbol]] = count
    table = dataclasses.replace(config, table=True)
    return _changed(
        model,
        dataclasses.replace(model.config, composition=table),
        {**_without(model, "composition."), "composition.vectors": stream.table(counts)[0]},
    )


def fold_lattice(model: Model, features: Tensor) -> Model:
    """The lattice encoding as part of the biases of the projection that reads it: W [s ‖ ℓ] + b = W_s s + (W_ℓ ℓ + b).

    The skip around the projection has no bias; its share goes to the last one of the projection, to which it is added.

    Args:
        model: float64, with a lattice encoding.
        features: (1, 9), see streams/lattice.py.
    """
    stream, config = model.structure, model.config.structure
    assert stream is not None
    assert stream.lattice is not None
    assert config is not None
    encoding = stream.lattice.layers(features)[0]
    state = _without(model, "structure.lattice.")
    last = f"structure.project.{len(stream.project) - 1}.bias"
    for weight, bias in (("structure.project.0.weight", "structure.project.0.bias"), ("structure.skip.weight", last)):
        of_spectrum, of_lattice = state[weight].tensor_split([-encoding.shape[0]], dim=1)
        state[weight] = of_spectrum.contiguous()
        state[bias] = state[bias] + of_lattice @ encoding
    structure = dataclasses.replace(config, lattice=False)
    return _changed(model, dataclasses.replace(model.config, structure=structure), state)


def as_sum(model: Model) -> Model:
    """A mean readout with an affine head as the sum over atoms that it is: N (w·h̄ + b) = Σ_i (w·h_i + b)."""
    assert not model.config.head_hidden
    return _changed(model, dataclasses.replace(model.config, readout="sum"), dict(model.state_dict()))


def with_affine_sum(model: Model, weight: Tensor, bias: Tensor) -> Model:
    """The model with Σ_i (w·h_i + b) for a readout, in units of the model's scale; w (1, width) and b (1,)."""
    head = {"head.layers.0.weight": weight, "head.layers.0.bias": bias}
    config = dataclasses.replace(model.config, readout="sum", head_hidden=())
    return _changed(model, config, {**_without(model, "head."), **head})


def overlaid(model: Model, switches: Sequence[ZBLSwitch]) -> Model:
    """The model faded into the short-range repulsion, see nn/zbl.py."""
    return _changed(model, dataclasses.replace(model.config, zbl_overlay=tuple(switches)), dict(model.state_dict()))


def without_zbl(model: Model) -> Model:
    """The model without the repulsion that it was trained with."""
    return _changed(model, dataclasses.replace(model.config, zbl=False, zbl_form="universal"), dict(model.state_dict()))


def _without(model: Model, prefix: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(prefix)}


def _changed(model: Model, config: ModelConfig, state: dict[str, Tensor]) -> Model:
    return build(config, {name: tensor.detach() for name, tensor in state.items()}, model.head.dtype, "the folded model")
