"""The ONNX forms of a model of two layers: all that TINY has, in a third of the time, and with repulsion that is overlaid
and a covariance of random weights for its last layer."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.tiny import TINY, tiny_model
from triforces_deploy import checkpoint
from triforces_deploy.config import BackboneConfig, CompositionConfig, ModelConfig, StructureConfig
from triforces_deploy.export.exporting import ExportOptions, export
from triforces_deploy.training.uncertainty import with_spread

SMALL = dataclasses.replace(
    TINY,
    backbone=BackboneConfig("orb_v3", {"latent": 16, "n_layers": 2, "mlp_hidden": 24, "n_bessel": 4, "l_max": 1}),
    composition=CompositionConfig(width=16, heads=2, layers=1, hidden=24),
    structure=StructureConfig(width=16, hidden=24, n_radial=4, n_channels=3, l_max=1, scales=(0.6, 1.0), layers=1),
    zbl=False,
)
SMALLER = dataclasses.replace(
    SMALL,
    backbone=BackboneConfig("orb_v3", {**SMALL.backbone.options, "n_layers": 1}),
    structure=dataclasses.replace(SMALL.structure or StructureConfig(), layers=0),
)


@pytest.fixture(scope="session")
def onnx_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both ONNX forms in float64, verified by export itself, with embeddings and with two periodic images."""
    options = ExportOptions(backends=("onnx", "onnx-positions"), embeddings=True, images=2)
    return _exported(SMALL, options, tmp_path_factory.mktemp("onnx64"))


@pytest.fixture(scope="session")
def onnx_float32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plain ONNX form in float32, of a model of one layer."""
    options = ExportOptions(precision="float32", backends=("onnx",), embeddings=True)
    return _exported(SMALLER, options, tmp_path_factory.mktemp("onnx32"))


def _exported(config: ModelConfig, options: ExportOptions, folder: Path) -> Path:
    model = tiny_model(config)
    n = model.head.n_features
    spread = 0.01 * torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    checkpoint.save(folder / "small.ckpt", with_spread(model, spread), {})
    export(folder / "small.ckpt", folder / "small.pt", dataclasses.replace(options, zbl="1.3,2.1"))
    return folder / "small.pt"
