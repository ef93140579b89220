"""Tiny models and a handful of structures that every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from triforces_deploy import checkpoint
from triforces_deploy.config import BackboneConfig, CompositionConfig, ModelConfig, StructureConfig
from triforces_deploy.export.exporting import ExportOptions, export
from triforces_deploy.model import Model

torch.set_num_threads(1)

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


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float64 checkpoint of :func:`tiny_model`."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.ckpt"
    checkpoint.save(path, tiny_model(), {"data": "random weights"})
    return path


@pytest.fixture(scope="session")
def tiny_artifact(tiny_checkpoint: Path) -> Path:
    """The eager form of it: quick to make, quick to open."""
    path = tiny_checkpoint.with_name("tiny.pt")
    export(tiny_checkpoint, path, ExportOptions(backends=()))
    return path


@pytest.fixture(scope="session")
def compiled_artifact(tiny_checkpoint: Path) -> Path:
    """The same with every compiled form, made once for the whole session."""
    path = tiny_checkpoint.with_name("compiled.pt")
    export(tiny_checkpoint, path, ExportOptions())
    return path
