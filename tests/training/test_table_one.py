"""Recipes of the rows of the paper's first table: the sizes that its text gives.

Our structure stream is smaller than the one that was counted there, whose power spectrum repeats its lower triangle and whose
messages read both ends and are followed by another perceptron. What it would have is counted here by its layout.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from triforces_deploy.model import Model
from triforces_deploy.training.recipe import load_recipe

ROWS = {"orb": "orb_v3", "orb-direct": "orb_v3", "esen": "esen", "esen-direct": "esen", "mace": "mace"}


def count(module: nn.Module | None) -> int:
    assert module is not None
    return sum(p.numel() for p in module.parameters())


def built(name: str) -> Model:
    with torch.device("meta"):
        return Model(load_recipe(name).model)


def linear(n_in: int, n_out: int) -> int:
    return n_in * n_out + n_out


def counted_structure(width: int, hidden: int, layers: int) -> int:
    """A stream of 8 channels, 8 radial functions, 3 scales and degrees up to 4, as it was counted."""
    spectrum, channels, radial = 8 * 8 * 5, 8, 24
    later = 2 * (linear(width, hidden) + linear(hidden, width))
    projection = linear(spectrum, hidden) + linear(hidden, width) + later + spectrum * width + 2 * spectrum
    messages = linear(2 * width + 8, width) + linear(2 * width, width) + 2 * linear(width, width)
    return channels * 8 + radial * 8 + projection + layers * messages


@pytest.mark.parametrize("name", ROWS)
def test_rows_differ_in_backbone_and_heads(name: str) -> None:
    recipe, paper = load_recipe(name), load_recipe("paper")
    assert recipe.model.backbone.name == ROWS[name]
    assert recipe.model.direct == name.endswith("-direct")
    assert (recipe.loss, recipe.optimiser, recipe.trainer) == (paper.loss, paper.optimiser, paper.trainer)
    assert built(name).facts().conservative != recipe.model.direct


def test_esen_has_6_million_parameters_and_12_with_the_streams() -> None:
    model = built("esen")
    readout = 2 * linear(128, 128) + linear(128, 1)
    assert round((count(model.interaction) + readout) / 1e6, 1) == 6.3
    assert round(count(model.composition) / 1e6, 2) == 3.19
    structure = counted_structure(256, 1024, layers=2)
    assert round(structure / 1e6, 2) == 2.52
    assert round((count(model) - count(model.structure) + structure) / 1e6) == 12


def test_orb_has_25_million_parameters_and_42_with_the_streams() -> None:
    """With what public Orb-v3 has besides its trunk: a decoder, an energy and its references, and a confidence of 50 bins."""
    model = built("orb")
    decoder = linear(256, 1024) + linear(1024, 1024) + linear(1024, 3)
    heads = 2 * linear(256, 256) + linear(256, 1) + linear(256, 50) + 118
    trunk = count(model.interaction) + decoder + heads
    assert trunk == 25_510_582
    assert round(count(model.composition) / 1e6, 2) == 8.47
    structure = counted_structure(512, 1024, layers=3)
    assert round((trunk + count(model.composition) + structure) / 1e6) == 42


def test_mace_gives_the_scalars_of_both_layers() -> None:
    assert built("mace").interaction.width == 256
