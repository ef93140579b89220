"""Several nodes: pretraining with every objective comes out as in one process, and a launch that does not fit is one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ase.io import write
from lightning.fabric.plugins.environments.lightning import find_free_network_port

from tests.training.objectives.test_ranks import OBJECTIVE
from tests.training.small import column, log, recipe, recipe_file, structures, train
from triforces_deploy.errors import UserError
from triforces_deploy.training.launch import environment_of
from triforces_deploy.training.recipe import TrainerConfig

TFDEPLOY = str(Path(sys.executable).with_name("tfdeploy"))
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
SECTIONS: dict[str, Any] = {
    "objective": OBJECTIVE,
    "views": {"radius": [3.0, 3.6], "draw": ["mask", "tile", "vacancies"]},
    "trainer": {"steps": 4, "validate_every": 2, "save_every": 2, "log_every": 1},
}


def test_two_nodes_pretrain_as_one_process(tmp_path: Path) -> None:
    """Structures of unlike sizes in unequal shares; weights, their average, every loss and every figure of validation."""
    atoms = structures(6, 4)
    atoms[::2] = [one.repeat((1, 1, 2)) for one in atoms[::2]]
    write(tmp_path / "structures.extxyz", atoms, format="extxyz")
    plan = recipe(tmp_path / "structures.extxyz", **SECTIONS)
    two = recipe(tmp_path / "structures.extxyz", **{**SECTIONS, "trainer": {**SECTIONS["trainer"], "nodes": 2}})
    file, port = recipe_file(tmp_path / "plan.yaml", two), find_free_network_port()
    command = [TFDEPLOY, "train", str(file), "-o", str(tmp_path / "two"), "--json"]
    meeting = {**ENVIRONMENT, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    nodes = [
        subprocess.Popen(
            command, env={**meeting, "NODE_RANK": str(k)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for k in range(2)
    ]
    train(plan, tmp_path / "one")
    said = [node.communicate(timeout=250) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert json.loads(said[0][0])["status"] == "finished"
    assert said[1][0] == ""  # the second node writes nothing
    one, other = (torch.load(tmp_path / name / "state.ckpt")["fit"] for name in ("one", "two"))
    for part in ("model", "average"):
        for name, tensor in one[part].items():
            torch.testing.assert_close(other[part][name], tensor, rtol=0, atol=1e-8, msg=name)
    for name in log(tmp_path / "one")[0]:
        assert column(tmp_path / "two", name) == pytest.approx(column(tmp_path / "one", name), rel=1e-6), name


@pytest.mark.parametrize(
    ("trainer", "said", "message"),
    [
        ({"nodes": 2}, {}, "MASTER_ADDR and MASTER_PORT and NODE_RANK are not set.*start with srun or torchrun"),
        ({"nodes": 2}, {"MASTER_ADDR": "a", "MASTER_PORT": "1"}, "nodes is 2 and NODE_RANK are not set"),
        ({"nodes": 2}, {"MASTER_ADDR": "a", "MASTER_PORT": "1", "NODE_RANK": "2"}, "NODE_RANK is 2.*expected 0 … 1"),
        ({"nodes": 2}, {"MASTER_ADDR": "a", "MASTER_PORT": "x", "NODE_RANK": "0"}, "MASTER_PORT is 'x'"),
        ({}, {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, "torchrun says 2 processes, 2 on each"),
        (
            {"nodes": 2, "devices": 2},
            {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"},
            "the recipe wants 4: trainer.nodes 2 with trainer.devices 2 each.*torchrun --nnodes=2 --nproc-per-node=2",
        ),
        ({"devices": 4}, {"SLURM_NTASKS": "1"}, "SLURM says 1 processes, 1 on each.*srun --nodes=1 --ntasks-per-node=4"),
        ({}, {"SLURM_NTASKS": "8"}, "8 processes without saying how many on each node.*the recipe wants 1"),
    ],
)
def test_a_launch_that_does_not_fit_is_one_line(
    trainer: dict[str, int], said: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_", "MASTER_"))]:
        monkeypatch.delenv(name)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        environment_of(TrainerConfig(**trainer))


@pytest.mark.parametrize(
    ("trainer", "said", "kind"),
    [
        ({"devices": 2}, {}, "LightningEnvironment"),
        ({}, {"SLURM_NTASKS": "1"}, "SLURMEnvironment"),
        ({"nodes": 2, "devices": 4}, {"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4"}, "SLURMEnvironment"),
        ({"nodes": 2}, {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}, "TorchElasticEnvironment"),
        ({"nodes": 2}, {"MASTER_ADDR": "a", "MASTER_PORT": "1", "NODE_RANK": "1"}, "LightningEnvironment"),
    ],
)
def test_a_launch_that_fits(trainer: dict[str, int], said: dict[str, str], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert type(environment_of(TrainerConfig(**trainer))).__name__ == kind
