"""The whole road at its smallest: label, train, evaluate, export, verify, defect, LAMMPS on two ranks. Commands only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
RECIPE = """
model:
  elements: [Si, Ge]
  cutoff: 3.5
  backbone: {name: orb_v3, options: {latent: 16, n_layers: 2, mlp_hidden: 16, mlp_depth: 1, n_bessel: 4, l_max: 1}}
  composition: {width: 8, heads: 2, layers: 1, hidden: 8}
  structure: {width: 16, hidden: 32, n_radial: 6, n_channels: 4, l_max: 3, layers: 1}
  head_hidden: [16]
optimiser: {lr: 5e-3, warmup: 10, ema: 0.9}
trainer: {steps: 120, batch_size: 2, validate_every: 60, threads: 1}
"""


@pytest.mark.timeout(280)
def test_from_nothing_to_two_ranks(tmp_path: Path) -> None:
    def run(*command: object, folder: Path = tmp_path) -> str:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"}
        words = [str(BIN / str(command[0])), *map(str, command[1:])]
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    (tmp_path / "small.yaml").write_text(RECIPE)
    run("tfdeploy", "label", "-o", "labels.extxyz", "--trajectories", 20, "--frames", 8)
    run("tfdeploy", "train", "small.yaml", "--data", "labels.extxyz", "-o", "run")
    errors = json.loads(run("tfdeploy", "evaluate", "run/best.ckpt", "--json"))
    assert errors["model"]["forces_rmse"] < 0.75 * errors["nothing"]["forces_rmse"]  # it has learnt something
    run("tfdeploy", "export", "run/best.ckpt", "-o", "model.pt", "--to", "torchscript")
    run("tfdeploy", "verify", "model.pt", "--against", "run/best.ckpt")
    sizes = (
        "--atoms",
        64,
        "--vacancies",
        1,
        "--defect",
        "Ge_Si",
        "--heat",
        10,
        "--equilibrate",
        5,
        "--produce",
        15,
        "--every",
        5,
    )
    run("tfdeploy", "defect", "model.pt", "-o", tmp_path / "md", *sizes)
    inside = tmp_path / "md"
    for name, launcher in (("one", ("lmp",)), ("two", ("mpirun", "-np", 2, BIN / "lmp"))):
        run(*launcher, "-in", "in.defect", "-var", "name", name, "-log", f"{name}.log", folder=inside)
    first, last = ([thermo(inside / f"{name}.log")[k] for name in ("one", "two")] for k in (0, -1))
    assert first[0] == pytest.approx(first[1], rel=1e-12)
    assert last[0] == pytest.approx(last[1], rel=1e-9)


def thermo(log: Path) -> list[float]:
    """Total energies of all thermo lines."""
    from triforces_deploy.report import read_thermo

    return [float(e) for table in read_thermo(log) for e in table["TotEng"]]
