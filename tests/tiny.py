"""A model small enough to test with, and large enough that nothing in it is trivial."""

from __future__ import annotations

import torch

from triforces_deploy.config import BackboneConfig, CompositionConfig, ModelConfig, StructureConfig
from triforces_deploy.model import Model

TINY = ModelConfig(
    elements=("Si", "Ge"),
    cutoff=4.0,
    backbone=BackboneConfig("orb_v3", {"latent": 16, "n_layers": 3, "mlp_hidden": 24, "n_bessel": 4, "l_max": 2}),
    composition=CompositionConfig(width=16, heads=2, layers=2, hidden=24),
    structure=StructureConfig(width=16, hidden=24, n_radial=4, n_channels=3, l_max=3),
    head_hidden=(24,),
    zbl=True,
)
"""All three streams, four exchanges, every option that changes the energy."""


def tiny_model(config: ModelConfig = TINY, seed: int = 0) -> Model:
    """Random weights, large enough that every stream matters; float64; references and scale of a plausible size."""
    torch.manual_seed(seed)
    model = Model(config)
    model.references[14], model.references[32] = -4.6, -3.9
    model.scale.fill_(0.7)
    model.set_network_dtype(torch.float64)
    return model.eval().requires_grad_(False)
