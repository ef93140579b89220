"""The benchmark for a GPU machine does its whole round on a CPU, at sizes that mean nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_whole_round_on_a_cpu(tmp_path: Path) -> None:
    words = ["--device", "cpu", "--models", "tiny", "--forms", "eager", "--atoms", "64", "--steps", "2", "--fit", "1000"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *words, "--json", str(tmp_path / "out.json")],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "LAMMPS_PLUGIN_PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out.json").read_text())
    steps = {row["route"]: row for row in rows if row["job"] == "step"}
    assert set(steps) == {"positions", "graphs"}, rows
    for row in steps.values():
        assert row["atoms"] == 64
        assert 0 < row["pair_s"] <= row["step_s"]
        assert row["model_s"] > 0
        assert row["kernels"] == "own"
    (fit,) = [row for row in rows if row["job"] == "fit"]
    assert fit["atoms"] == 1000
    (checked,) = [row["deviations"] for row in rows if row["job"] == "check"]
    assert checked["float64"]["forces"] == 0.0
    assert 0 < checked["float32"]["forces"] < 1e-3
    assert "tf32 matrix products need a CUDA GPU" in checked["tf32"]["error"]
    assert "largest that one evaluation holds" in done.stdout
