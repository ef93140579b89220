"""The command line as a user meets it: quick help, one line for a mistake, exit codes, JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from ase.build import bulk
from ase.io import write

from triforces_deploy import checkpoint
from triforces_deploy.config import ModelConfig, read

TFDEPLOY = str(Path(sys.executable).with_name("tfdeploy"))


def tfdeploy(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [TFDEPLOY, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_help_loads_nothing_heavy() -> None:
    """torch alone would cost seconds; the time itself is measured in the benchmarks."""
    program = "import sys, triforces_deploy.cli; print([m for m in ('torch', 'ase', 'numpy', 'lightning') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
    shown = tfdeploy("--help")
    assert shown.returncode == 0
    assert all(name in shown.stdout for name in ("label", "train", "export", "verify", "defect"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("exprt",), "Did you mean 'export'"),
        (("export",), "Missing argument 'source'"),
        (("export", "missing.ckpt"), "missing.ckpt does not exist; expected a checkpoint"),
        (("info", "."), ". is a folder; expected a checkpoint"),
        (("train", "missing.yaml", "-o", "run"), "missing.yaml does not exist; expected a recipe"),
        (("label", "-o", "x.extxyz", "--hosts", "Sic"), "Sic"),
        (("verify", "missing.pt"), "missing.pt does not exist"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = tfdeploy(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_unknown_back_ends_and_counts(tiny_checkpoint: Path, tiny_artifact: Path, tmp_path: Path) -> None:
    done = tfdeploy("export", tiny_checkpoint, "-o", tmp_path / "x.pt", "--to", "onxx")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "unknown back end 'onxx'; known: aoti, torchscript, export, onnx, onnx-positions, eager" in done.stderr
    done = tfdeploy("defect", tiny_artifact, "-o", tmp_path / "md", "--defect", "Ge_Si:two")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "'two' is no amount; expected a count such as 100, or 0.1%" in done.stderr


def test_info_tells_what_a_checkpoint_is(tiny_checkpoint: Path) -> None:
    shown = tfdeploy("info", tiny_checkpoint).stdout
    model, provenance = checkpoint.load(tiny_checkpoint)
    assert f"{model.config.backbone.name} + composition + structure, {sum(p.numel() for p in model.parameters()):,}" in shown
    said = json.loads(tfdeploy("info", tiny_checkpoint, "--json").stdout)
    assert read(ModelConfig, said["model"], "model") == model.config
    assert said["provenance"] == provenance


def test_export_info_verify_in_json(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "frozen.pt"
    write(tmp_path / "si.extxyz", bulk("Si", "diamond", 5.43, cubic=True))
    options = ("--to", "eager", "--composition", "frozen", "--structure", tmp_path / "si.extxyz", "--json")
    made = json.loads(tfdeploy("export", tiny_checkpoint, "-o", out, *options).stdout)
    shown = json.loads(tfdeploy("info", out, "--json").stdout)
    assert made == shown
    assert shown["facts"]["reference"] == {"Si": 8}
    assert "composition: frozen to Si8" in shown["facts"]["policies"]
    assert "frozen to Si8" in tfdeploy("info", out).stdout
    checked = tfdeploy("verify", out, "--against", tiny_checkpoint, "--structures", tmp_path / "si.extxyz", "--json")
    (row,) = json.loads(checked.stdout)
    assert (row["backend"], row["structures"]) == ("eager", 1)
    assert row["energy"] < 1e-14


def test_a_failed_verification_is_exit_code_2(tiny_artifact: Path, tmp_path: Path) -> None:
    from tests.tiny import tiny_model
    from triforces_deploy import checkpoint

    checkpoint.save(tmp_path / "other.ckpt", tiny_model(seed=3), {})
    done = tfdeploy("verify", tiny_artifact, "--against", tmp_path / "other.ckpt")
    assert done.returncode == 2
    assert "eager differs from other.ckpt" in done.stderr


def test_control_c_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """In the middle of the compilation, which is the long part."""
    command = [TFDEPLOY, "export", str(tiny_checkpoint), "-o", str(tmp_path / "x.pt")]
    # A shell starts what it puts in the background with interrupts switched off, and children inherit that.
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    assert process.stderr is not None
    while "compiling for aoti" not in (line := process.stderr.readline()):
        assert line, "export ended early"
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert rest.splitlines()[-1] == "tfdeploy: stopped"
    assert list(tmp_path.iterdir()) == []
