"""Every backbone on one rank and on several; orb_v3 is what all other tests here run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.lammps import cases
from tests.lammps.harness import expected
from tests.lammps.test_many_ranks import deviations, simulate
from tests.test_backbones import SMALL
from tests.tiny import TINY, tiny_model
from triforces_deploy import artifact, checkpoint
from triforces_deploy.backbones.table import BACKBONES
from triforces_deploy.config import BackboneConfig
from triforces_deploy.export.exporting import ExportOptions, export

NAMES = ["triclinic", "slab"]


@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "orb_v3"])
def test_ranks_do_not_matter(name: str, tmp_path: Path) -> None:
    """One rank against our own numbers without LAMMPS, four against one."""
    config = dataclasses.replace(TINY, backbone=BackboneConfig(name, SMALL[name]))
    model = tiny_model(config)
    checkpoint.save(tmp_path / "model.ckpt", model, {})
    file = tmp_path / "model.pt"
    export(tmp_path / "model.ckpt", file, ExportOptions(backends=()))
    alone, _ = simulate(tmp_path, file, 1, NAMES)
    potential = artifact.load(file)
    for structure in NAMES:
        atoms = cases.ALL[structure]()
        atoms.positions = alone[structure][:, 1:4]
        np.testing.assert_allclose(alone[structure][:, 4:7], expected(atoms, potential).forces, rtol=0, atol=1e-8)
    found, text = simulate(tmp_path, file, 4, NAMES)
    worst = deviations(found, alone)
    assert max(worst.values()) <= 1e-10, worst
    assert f"MPI between 4 ranks, {model.facts().n_exchanges} times forward and backward" in text
