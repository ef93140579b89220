"""The eager model from a configuration and weights, neither of which is believed."""

from __future__ import annotations

import dataclasses
import warnings

import torch
from torch import Tensor

from triforces_deploy.config import ModelConfig, as_dict
from triforces_deploy.errors import UserError
from triforces_deploy.model import Model

MAX_CUTOFF = 100.0
"""Å. No neighbour list of a larger one ends."""


def build(config: ModelConfig, weights: dict[str, Tensor], dtype: torch.dtype, name: str) -> Model:
    """The model in evaluation mode, its parameters needing no gradient.

    Args:
        config: what the file says of the model.
        weights: the model's state.
        dtype: of the network.
        name: how messages call the file.

    Raises:
        UserError: weights and configuration do not belong together; found before memory is asked for.
    """
    misfit = UserError(f"{name}: weights do not fit the configuration stored beside them; the file is damaged")
    _refuse_absurd_sizes(config, weights, misfit)
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layers without elements
            shape_only = Model(config)
    except UserError:
        raise
    except Exception as error:  # no layer is written for sizes that cannot be
        raise misfit from error
    shape_only.set_network_dtype(dtype)
    expected = {key: (tensor.shape, tensor.dtype) for key, tensor in shape_only.state_dict().items()}
    if {key: (tensor.shape, tensor.dtype) for key, tensor in weights.items()} != expected:
        raise misfit
    model = Model(config)
    model.set_network_dtype(dtype)
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def _refuse_absurd_sizes(config: ModelConfig, weights: dict[str, Tensor], misfit: UserError) -> None:
    """No honest size exceeds both the number of weights and the longest of their sides; 10⁹ layers would never end."""
    most = max([len(weights), 16, *(side for tensor in weights.values() for side in tensor.shape)])
    sizes = dataclasses.replace(config, max_neighbours=None)  # a large cap costs nothing
    if config.composition is not None and config.composition.table:
        sizes = dataclasses.replace(sizes, composition=None)  # the transformer that it speaks of is not there any more
    for value in _numbers(as_dict(sizes)):
        if abs(value) > most:  # a charge may be negative
            raise misfit
    cap = config.max_neighbours
    if not 0 < config.cutoff <= MAX_CUTOFF or not (cap is None or 0 < cap < 1 << 31):
        raise misfit


def _numbers(value: object) -> list[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, int | float) else []
