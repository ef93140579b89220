"""No way of stopping a training changes its outcome, and what cannot go on says so in one line."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.training.small import equal, labels, log, recipe, recipe_file, train, weights
from triforces_deploy import checkpoint
from triforces_deploy.errors import UserError
from triforces_deploy.stopping import SIGNALS
from triforces_deploy.training import loop
from triforces_deploy.training.loop import TrainResult

TFDEPLOY = str(Path(sys.executable).with_name("tfdeploy"))
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}


def check_same(folder: Path, straight: Path) -> None:
    assert yaml.safe_load((folder / "recipe.yaml").read_text()) == yaml.safe_load((straight / "recipe.yaml").read_text())
    for name in ("log.csv", "split.json"):
        assert (folder / name).read_text() == (straight / name).read_text()
    for name in ("best.ckpt", "last.ckpt"):
        assert equal(weights(folder / name), weights(straight / name))
        assert checkpoint.load(folder / name)[1] == checkpoint.load(straight / name)[1]
    assert {p.name for p in straight.iterdir()} == {p.name for p in folder.iterdir()}


# ---- stopping and going on ----

KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from triforces_deploy.training import loop, run_folder
from triforces_deploy.training.recipe import load_recipe

torch.set_num_threads(1)
plain_step, plain_save = loop._Recorder.on_step, run_folder.RunFolder.save_model

def step(self, number, lr, parts):
    plain_step(self, number, lr, parts)
    if number == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

def save(self, path, *arguments):
    plain_save(self, path, *arguments)
    if path == self.last and arguments[1] == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

loop._Recorder.on_step, run_folder.RunFolder.save_model = (step, plain_save) if sys.argv[4] == "step" else (plain_step, save)
loop.train(load_recipe(sys.argv[1]), Path(sys.argv[2]), progress=False)
"""


def test_kill_9_changes_nothing(data: Path, straight: Path, tmp_path: Path) -> None:
    """Once between two states, once in a validation, when checkpoints are of step 30 and the state is of step 24."""
    plan = recipe(data)
    file = str(recipe_file(tmp_path / "plan.yaml", plan))
    run = tmp_path / "run"
    for at, where, state in ((17, "step", 15), (30, "validation", 24)):
        command = [sys.executable, "-c", KILLED, file, str(run), str(at), where]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert torch.load(run / "state.ckpt")["fit"]["step"] == state
        assert int(log(run)[-1]["step"]) > state
    assert train(plan, run).status == "finished"
    check_same(run, straight)


def kill_at(steps: dict[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process a signal at the end of some steps, once each."""
    plain = loop._Recorder.on_step

    def on_step(self: Any, step: int, *arguments: Any) -> None:
        plain(self, step, *arguments)
        if step in steps:
            os.kill(os.getpid(), steps.pop(step))

    monkeypatch.setattr(loop._Recorder, "on_step", on_step)


def test_signals_change_nothing(data: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between log lines, right before a validation, at a state, and at the last step."""
    sent = {7: signal.SIGTERM, 15: signal.SIGINT, 18: signal.SIGTERM, 40: signal.SIGINT}
    kill_at({**sent}, monkeypatch)
    before = [signal.getsignal(number) for number in SIGNALS]
    for step in (7, 15, 18):
        result = train(recipe(data), tmp_path)
        assert (result.status, result.step, result.signal) == ("interrupted", step, sent[step])
        assert f"interrupted after step {step} of 40; the same command goes on" in result.line()
        assert [signal.getsignal(number) for number in SIGNALS] == before
    result = train(recipe(data), tmp_path)
    assert (result.status, result.step, result.signal) == ("finished", 40, None)
    check_same(tmp_path, straight)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_a_validation_waits_for_its_end(
    number: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several batches: what drives the loop would rather leave between two of them."""
    plain, calls = loop.Fit.validation_step, []

    def validation_step(self: Any, *arguments: Any) -> None:
        calls.append(self.step)
        if len(calls) == 1:
            os.kill(os.getpid(), number)
        plain(self, *arguments)

    monkeypatch.setattr(loop.Fit, "validation_step", validation_step)
    result = train(recipe(data, trainer={"batch_size": 3}), tmp_path)
    assert (result.status, result.step, result.signal) == ("interrupted", 15, number)
    assert calls == [15] * 3
    assert torch.load(tmp_path / "state.ckpt")["fit"]["step"] == 15
    assert int(log(tmp_path)[-1]["step"]) == 15


def test_a_second_signal_does_not_wait(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)  # a job in the background ignores it
    plain = loop.Fit.training_step

    def training_step(self: Any, sample: Any) -> Any:
        if self.step == 8:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, sample)

    monkeypatch.setattr(loop.Fit, "training_step", training_step)
    with pytest.raises(KeyboardInterrupt):
        train(recipe(data), tmp_path)
    assert torch.load(tmp_path / "state.ckpt")["fit"]["step"] == 6
    assert signal.getsignal(signal.SIGINT) is before


def test_the_command_stops_with_the_code_of_the_signal(data: Path, tmp_path: Path) -> None:
    plan = recipe_file(tmp_path / "plan.yaml", recipe(data, trainer={"steps": 1_000_000, "validate_every": 7}))
    command = [TFDEPLOY, "train", str(plan), "-o", str(tmp_path / "run")]
    reached = 0
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        # A shell starts what it puts in the background with interrupts switched off, and children inherit that.
        listen = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
        process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
        wait_for_step(tmp_path / "run", reached + 20, process)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == code, said
        assert ("starting: 8 structures" if reached == 0 else f"going on after step {reached}: 8 structures") in said
        reached = torch.load(tmp_path / "run" / "state.ckpt")["fit"]["step"]
        assert f"interrupted after step {reached} of 1000000; the same command goes on from here" in said
        assert "Traceback" not in said
        assert not list((tmp_path / "run").glob("*.part"))


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        lines = (folder / "log.csv").read_text().splitlines()[1:] if (folder / "log.csv").exists() else []
        if any(int(line.split(",")[0]) >= step for line in lines):
            return
        assert process.poll() is None, process.stderr
        time.sleep(0.02)
    process.kill()
    raise AssertionError("no step in a minute")


def test_time_is_up(data: Path, straight: Path, tmp_path: Path) -> None:
    """The step at hand and perhaps the next, a validation, and the same end as ever in the next call."""
    result = train(recipe(data, trainer={"max_minutes": 1e-9}), tmp_path)
    assert (result.status, result.signal) == ("out of time", None)
    assert result.step in (1, 2)
    assert result.metrics is not None
    assert f"time is up after step {result.step} of 40" in result.line()
    assert train(recipe(data), tmp_path).status == "finished"
    assert equal(weights(tmp_path / "last.ckpt"), weights(straight / "last.ckpt"))


def test_a_finished_run_stays_as_it_is(data: Path, straight: Path) -> None:
    before = {p: p.read_bytes() for p in straight.rglob("*") if p.is_file()}
    result = train(recipe(data), straight)
    assert (result.status, result.step, result.signal) == ("finished", 40, None)
    assert result.metrics is not None
    assert {p: p.read_bytes() for p in straight.rglob("*") if p.is_file()} == before


def test_training_outside_of_the_main_thread(data: Path, tmp_path: Path) -> None:
    """Where Python allows no signal handlers, as in a notebook's or a server's worker."""
    results: list[TrainResult] = []
    worker = threading.Thread(target=lambda: results.append(train(recipe(data, trainer={"steps": 2}), tmp_path)))
    worker.start()
    worker.join()
    assert [r.status for r in results] == ["finished"]


# ---- refusals ----


def test_another_run_in_the_same_folder(data: Path, straight: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in straight.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="holds a run with another optimiser; choose another folder"):
        train(recipe(data, optimiser={"lr": 1e-3}), straight)
    with pytest.raises(UserError, match="holds a run with another content of the data files"):
        train(recipe(labels(tmp_path, seed=1)), straight)
    assert {p: p.read_bytes() for p in straight.rglob("*") if p.is_file()} == before
    moved = labels(tmp_path)
    assert train(recipe(moved, trainer={"max_minutes": 5.0, "save_every": 3}), straight).status == "finished"


def test_a_new_run_in_the_same_folder(data: Path, tmp_path: Path) -> None:
    train(recipe(data, trainer={"steps": 3}), tmp_path)
    plan = recipe(data, trainer={"steps": 2}, optimiser={"lr": 1e-3})
    assert train(plan, tmp_path, resume=False).step == 2
    assert [r["step"] for r in log(tmp_path)] == ["2", "2"]
    assert train(plan, tmp_path).status == "finished"


def test_a_damaged_state(data: Path, tmp_path: Path) -> None:
    for content in (b"", b"hello", b"PK\x03\x04" + bytes(100)):
        (tmp_path / "state.ckpt").write_bytes(content)
        with pytest.raises(UserError, match=r"state.ckpt is damaged; remove it to start over"):
            train(recipe(data), tmp_path)
    torch.save({"format": 99}, tmp_path / "state.ckpt")
    with pytest.raises(UserError, match="of another version"):
        train(recipe(data), tmp_path)


def test_a_loss_that_is_not_a_number(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the loss of step \d+ is not a number; lower optimiser.lr") as caught:
        train(recipe(data, optimiser={"lr": 1e200, "clip": 1e300, "warmup": 0}, trainer={"save_every": 1}), tmp_path)
    assert "\n" not in str(caught.value)
    step = int(str(caught.value).split("the loss of step ")[1].split()[0])
    good, bad = torch.load(tmp_path / "state.ckpt")["fit"], torch.load(tmp_path / "bad_batch.0.pt")
    assert (good["step"], bad["step"]) == (step - 1, step)
    assert all(bool(tensor.isfinite().all()) for tensor in good["model"].values())
    assert bad["pieces"][0]["forces"].shape == (40, 3)
    assert bad["pieces"][0]["graph"]["edge_index"].shape[0] == 2


def test_nothing_to_validate_on_and_no_gpu(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"set data\.validation above 0 or name validation_files"):
        train(recipe(data, data={"validation": 0.0}), tmp_path / "run")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"trainer\.device is cuda but torch finds no GPU"):
        train(recipe(data, trainer={"device": "cuda"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot make the folder"):
        train(recipe(data), tmp_path / "file" / "run")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A limit on file size fails a write the way a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_is_one_line_and_can_be_gone_on_from(data: Path, straight: Path, tmp_path: Path) -> None:
    """At the state of step 6; room for the texts."""
    with largest_file(50_000), pytest.raises(UserError, match=r"cannot write .*state\.ckpt.*free some space") as caught:
        train(recipe(data), tmp_path)
    assert "\n" not in str(caught.value)
    assert {p.name for p in tmp_path.iterdir()} == {"recipe.yaml", "about.json", "split.json", "log.csv", "tensorboard"}
    train(recipe(data), tmp_path)
    check_same(tmp_path, straight)


def test_no_room_for_the_log(data: Path, tmp_path: Path) -> None:
    often = {"log_every": 1, "save_every": 100, "validate_every": 100, "steps": 99}
    with largest_file(2_500), pytest.raises(UserError, match=r"cannot write .*tensorboard/events.*free some space"):
        train(recipe(data, trainer=often), tmp_path / "curves")
    plan = recipe(data, trainer={**often, "loggers": []})
    with largest_file(2_500), pytest.raises(UserError, match=r"cannot write .*log\.csv.*free some space"):
        train(plan, tmp_path)
    with largest_file(100), pytest.raises(UserError, match=r"cannot write .*recipe\.yaml.*free some space"):
        train(plan, tmp_path)
    assert not list(tmp_path.glob(".*"))
