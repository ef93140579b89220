"""Every backbone of the table in LAMMPS: the numbers of one rank on several, and those that we compute without LAMMPS."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.lammps import cases
from tests.lammps.harness import expected
from tests.lammps.test_many_ranks import deviations, simulate
from tests.test_backbones import SMALL
from triforces_deploy import checkpoint
from triforces_deploy.artifact import load
from triforces_deploy.config import BackboneConfig, ModelConfig
from triforces_deploy.export.exporting import ExportOptions, export
from triforces_deploy.model import Model

OTHERS = [name for name in SMALL if name != "orb_v3"]  # which all other tests of LAMMPS run


@pytest.mark.parametrize("name", OTHERS)
def test_ranks_do_not_matter(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Model(ModelConfig(("Si", "Ge"), 4.0, BackboneConfig(name, SMALL[name]), None, None, (8,), head_skip=True))
    model.set_network_dtype(torch.float64)
    checkpoint.save(tmp_path / "x.ckpt", model.eval().requires_grad_(False), {})
    artifact = tmp_path / "x.pt"
    export(tmp_path / "x.ckpt", artifact, ExportOptions(backends=()))
    systems = ["orthogonal", "triclinic", "lonely"]
    alone, _ = simulate(tmp_path, artifact, 1, systems)
    for ranks in (2, 4):
        worst = deviations(simulate(tmp_path, artifact, ranks, systems)[0], alone)
        assert max(worst.values()) <= 1e-10, (ranks, worst)
    atoms = cases.triclinic()
    last = alone["triclinic"][-1]
    atoms.positions = last[:, 1:4]
    wanted = expected(atoms, load(artifact)).forces
    np.testing.assert_allclose(last[:, 4:7], wanted, rtol=0, atol=1e-9 * np.abs(wanted).max())
