"""Backbones with products of spherical tensors compile to portable forms and equal eager, at sizes that export never saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ase.build import bulk, molecule

from triforces_deploy import artifact, checkpoint
from triforces_deploy.config import BackboneConfig, ModelConfig
from triforces_deploy.export.exporting import ExportOptions, export
from triforces_deploy.model import Model
from triforces_deploy.neighbours import graph_from_atoms

FORMS = ("torchscript", "export")
"""The cheapest; export itself compares every other form with eager before a file appears."""
SMALL: dict[str, dict[str, Any]] = {
    "mace": {"channels": 4, "l_max": 1, "correlation": [2, 1], "first": "density", "n_bessel": 3, "radial_hidden": [5]},
    "esen": {"channels": 4, "hidden": 4, "edge_channels": 4, "n_layers": 1, "l_max": 1, "m_max": 1, "n_gaussians": 4},
}


@pytest.mark.parametrize("name", SMALL)
def test_the_portable_forms_equal_eager_at_every_size(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = ModelConfig(("C", "H"), 3.0, BackboneConfig(name, SMALL[name]), None, None, (4,))
    model = Model(config)
    model.set_network_dtype(torch.float64)
    checkpoint.save(tmp_path / "a.ckpt", model, {})
    export(tmp_path / "a.ckpt", tmp_path / "a.pt", ExportOptions(backends=FORMS))
    *compiled, eager = (artifact.load(tmp_path / "a.pt", backend) for backend in (*FORMS, "eager"))
    for atoms in (molecule("C2H6"), bulk("C", cubic=True).repeat((2, 1, 1))):
        atoms.rattle(0.1, seed=4)
        graph = graph_from_atoms(atoms, 3.0)
        old = eager.evaluate(graph)
        assert old.edge_forces.abs().max() > 1e-4
        for new in (form.evaluate(graph) for form in compiled):
            torch.testing.assert_close(new.energies, old.energies, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(new.edge_forces, old.edge_forces, rtol=1e-11, atol=1e-12)
