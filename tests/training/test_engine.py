"""However a batch is cut, shared or delayed, the weights are those of the batch; and what a run leaves behind."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.io import write
from PIL import Image

from tests.training.small import column, equal, log, recipe, recipe_file, structures, train, weights
from triforces_deploy.errors import UserError
from triforces_deploy.graph import collate
from triforces_deploy.model import Model
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.training import compiled
from triforces_deploy.training.fit import Fit
from triforces_deploy.training.objective import predict
from triforces_deploy.training.progress import Bar
from triforces_deploy.training.recipe import load_recipe
from triforces_deploy.training.supervised import Supervised

TFDEPLOY = str(Path(sys.executable).with_name("tfdeploy"))
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
SETTINGS = {"steps": 6, "validate_every": 3, "save_every": 2, "log_every": 2}


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Structures of 8 and 16 atoms, of which every third has no stress: pieces of a batch must not count alike."""
    atoms = structures(6, 4)
    for k in range(0, len(atoms), 3):
        del atoms[k].calc.results["stress"]
    for k in range(0, len(atoms), 2):
        results = atoms[k].calc.results
        atoms[k] = atoms[k].repeat((1, 1, 2))
        atoms[k].calc = double(atoms[k], results)
    path = tmp_path_factory.mktemp("uneven") / "labels.extxyz"
    write(path, atoms, format="extxyz")
    return path


def double(atoms: Any, results: dict[str, Any]) -> Any:
    from ase.calculators.singlepoint import SinglePointCalculator

    forces = torch.tensor(results["forces"]).repeat(2, 1).numpy()
    return SinglePointCalculator(atoms, **{**results, "energy": 2 * results["energy"], "forces": forces})


@pytest.fixture(scope="module")
def whole(uneven: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps of undivided batches."""
    folder = tmp_path_factory.mktemp("whole")
    train(recipe(uneven, trainer=SETTINGS), folder)
    return folder


def check_near(folder: Path, whole: Path) -> None:
    """Sums in another order: the same to rounding, weights after six steps and losses."""
    one, two = (weights(f / "last.ckpt") for f in (folder, whole))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-10)
    for name in ("loss", "loss_energy", "loss_forces", "loss_stress", "val_score"):
        assert column(folder, name) == pytest.approx(column(whole, name), rel=1e-6)


def check_same_state(folder: Path, whole: Path) -> None:
    """Weights, average and the optimiser's moments in the same places with the same numbers."""
    one, two = (torch.load(f / "state.ckpt")["fit"] for f in (folder, whole))
    assert one["step"] == two["step"]
    assert column(folder, "loss") == pytest.approx(column(whole, "loss"), rel=1e-6)
    for part in ("model", "average"):
        assert one[part].keys() == two[part].keys()
        for name, tensor in two[part].items():
            torch.testing.assert_close(one[part][name], tensor, rtol=0, atol=1e-10)
    assert one["optimiser"]["param_groups"] == two["optimiser"]["param_groups"]
    assert one["optimiser"]["state"].keys() == two["optimiser"]["state"].keys()
    for k, moments in two["optimiser"]["state"].items():
        for name, tensor in moments.items():
            torch.testing.assert_close(one["optimiser"]["state"][k][name], tensor, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("pieces", [2, 5])
def test_accumulated_gradients_are_those_of_the_batch(pieces: int, uneven: Path, whole: Path, tmp_path: Path) -> None:
    """Also of five pieces of one structure each, of which some have no stress."""
    train(recipe(uneven, trainer={**SETTINGS, "accumulate": pieces}), tmp_path)
    check_near(tmp_path, whole)


def test_memory_that_runs_out_makes_pieces_and_a_line(
    uneven: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half way through the second step, as if no more than three structures fitted; the third call goes on in pieces."""
    plain, lines = Supervised.losses, []

    def losses(self: Any, learner: Any, batch: Any) -> Any:
        if len(batch.energy) > 3 and fits[-1].step >= 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return plain(self, learner, batch)

    fits: list[Fit] = []
    plain_run = Fit.run
    monkeypatch.setattr(Fit, "run", lambda self: (fits.append(self), plain_run(self))[1])
    monkeypatch.setattr(Supervised, "losses", losses)
    monkeypatch.setattr(Bar, "say", lambda self, line: lines.append(line))
    assert train(recipe(uneven, trainer={**SETTINGS, "validate_every": 6}), tmp_path).status == "finished"
    assert lines == ["memory ran out: from here on each process takes its share of a batch in 2 pieces"]
    assert torch.load(tmp_path / "state.ckpt")["fit"]["pieces"] == 2
    one, two = (weights(f / "last.ckpt") for f in (tmp_path, whole))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-10)


def test_memory_that_never_suffices_is_one_line(uneven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def losses(*_: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")

    monkeypatch.setattr(Supervised, "losses", losses)
    with pytest.raises(UserError, match=r"step 1 has 5 structures, which 8 processes and pieces cannot share"):
        train(recipe(uneven, trainer=SETTINGS), tmp_path)


def test_other_errors_are_no_lack_of_memory(uneven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def losses(*_: Any) -> Any:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Supervised, "losses", losses)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(recipe(uneven, trainer=SETTINGS), tmp_path)


def test_workers_change_nothing(uneven: Path, whole: Path, tmp_path: Path) -> None:
    """Not even the last bit, with a resumption in between and more workers than steps."""
    plan = recipe(uneven, trainer={**SETTINGS, "workers": 2})
    for minutes in (1e-9, None):
        limited = recipe(uneven, trainer={**SETTINGS, "workers": 2, "max_minutes": minutes})
        train(limited if minutes else plan, tmp_path)
    assert equal(torch.load(tmp_path / "state.ckpt")["fit"]["model"], torch.load(whole / "state.ckpt")["fit"]["model"])


def test_batches_by_atoms_go_on_where_they_stopped(uneven: Path, tmp_path: Path) -> None:
    plan = {**SETTINGS, "batch_by": "atoms", "batch_size": 40}
    train(recipe(uneven, trainer=plan), tmp_path / "one")
    train(recipe(uneven, trainer={**plan, "max_minutes": 1e-9}), tmp_path / "two")
    assert train(recipe(uneven, trainer=plan), tmp_path / "two").status == "finished"
    one, two = (torch.load(tmp_path / name / "state.ckpt")["fit"]["model"] for name in ("one", "two"))
    assert equal(one, two)


def test_two_processes_train_as_one(uneven: Path, whole: Path, tmp_path: Path) -> None:
    """Through the command, which starts the second process itself; five structures shared as three and two.

    A call that is stopped by its time limit stops in both, and both go on, with the optimiser's memory shared out.
    """
    for minutes, strategy, expected in ((1e-9, "replicated", "out of time"), (None, "sharded", "finished")):
        settings = {**SETTINGS, "devices": 2, "max_minutes": minutes, "strategy": strategy}
        file = recipe_file(tmp_path / "plan.yaml", recipe(uneven, trainer=settings))
        command = [TFDEPLOY, "train", str(file), "-o", str(tmp_path / "run"), "--json"]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=250, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["status"] == expected  # once, so from one process
    check_same_state(tmp_path / "run", whole)
    assert json.loads((tmp_path / "run" / "about.json").read_text())["processes"] == 2


def test_what_two_processes_shared_out_one_takes_up(uneven: Path, whole: Path, tmp_path: Path) -> None:
    file = recipe_file(
        tmp_path / "plan.yaml", recipe(uneven, trainer={**SETTINGS, "devices": 2, "strategy": "sharded", "max_minutes": 1e-9})
    )
    command = [TFDEPLOY, "train", str(file), "-o", str(tmp_path / "run"), "--json"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=250, check=False)
    assert (done.returncode, json.loads(done.stdout)["step"]) == (0, 1), done.stderr
    assert train(recipe(uneven, trainer=SETTINGS), tmp_path / "run").status == "finished"
    check_same_state(tmp_path / "run", whole)


@pytest.mark.parametrize(
    ("trainer", "reason"),
    [
        ({"strategy": "fsdp"}, "FSDP frees weights that the derivative of the forces still needs"),
        ({"compile": True}, "only fits to energies that are sums, and to their derivatives, are compiled"),
    ],
)
def test_what_cannot_work_is_refused_with_its_reason(
    trainer: dict[str, Any], reason: str, uneven: Path, tmp_path: Path
) -> None:
    file = recipe_file(tmp_path / "plan.yaml", recipe(uneven, objective={"masked": {}}, trainer=trainer))
    with pytest.raises(UserError, match=reason):
        load_recipe(file)


def test_a_captured_graph_trains_as_the_model(
    uneven: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of all sizes go through one capture; what the compiler makes of it is left out, which would take minutes."""
    captured = []
    capture = compiled._capture
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    monkeypatch.setattr(compiled, "_capture", lambda *given: (captured.append(1), capture(*given))[1])
    train(recipe(uneven, trainer={**SETTINGS, "compile": True}), tmp_path)
    check_near(tmp_path, whole)
    assert len(captured) == 1


def test_a_captured_graph_holds_for_any_number_of_structures(uneven: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two structures are as many as an edge has ends, three as many as there are dimensions."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    model = Model(recipe(uneven).model).double()
    found, frames = compiled.CompiledPredict(), structures()
    for n in (2, 3, 5):
        graph = collate([graph_from_atoms(atoms, model.config.cutoff) for atoms in frames[:n]])
        expected = predict(model, graph, create_graph=True)
        for ours, theirs in zip(found(model, graph), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert len(found.captured) == 1


def test_bf16_multiplies_coarsely_and_keeps_its_weights(uneven: Path, whole: Path, tmp_path: Path) -> None:
    train(recipe(uneven, trainer={**SETTINGS, "precision": "bf16"}), tmp_path)
    saved = weights(tmp_path / "last.ckpt")
    assert {t.dtype for t in saved.values() if t.is_floating_point()} == {torch.float32, torch.float64}
    ours, exact = column(tmp_path, "loss"), column(whole, "loss")
    assert ours == pytest.approx(exact, rel=0.1)
    assert max(abs(a / b - 1) for a, b in zip(ours, exact, strict=True)) > 1e-5  # float32 comes within 1e-6


# ---- what is left behind ----


def events(folder: Path) -> list[tuple[int, str, float]]:
    """Scalars of TensorBoard's files: records of length, checksum, message, checksum, as TensorFlow frames them."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            at += 16 + length
    return found


def test_tensorboard_gets_what_the_log_has(whole: Path) -> None:
    found = events(whole / "tensorboard")
    rows = [(int(r["step"]), k, float(v)) for r in log(whole) for k, v in r.items() if v and k != "step"]
    assert [(step, tag) for step, tag, _ in found] == [(step, tag) for step, tag, _ in rows]
    assert [value for *_, value in found] == pytest.approx([value for *_, value in rows], rel=1e-6)


def test_a_run_says_what_it_was(uneven: Path, whole: Path) -> None:
    import hashlib

    about = json.loads((whole / "about.json").read_text())
    assert about["data"] == {str(uneven): hashlib.sha256(uneven.read_bytes()).hexdigest()}
    assert torch.__version__.startswith(about["packages"]["torch"].split("+")[0])
    assert re.fullmatch(r"3\.\d+\.\d+", about["python"])
    assert (about["processes"], about["frames"]["train"] > 0) == (1, True)
    with Image.open(whole / "curves.png") as picture:
        assert picture.format == "PNG"
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20


def test_no_loggers_and_one_that_is_not_installed(uneven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(recipe(uneven, trainer={**SETTINGS, "loggers": []}), tmp_path / "none")
    assert not (tmp_path / "none" / "tensorboard").exists()
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="names wandb, which is not installed; pip install wandb"):
        train(recipe(uneven, trainer={**SETTINGS, "loggers": ["wandb"]}), tmp_path / "one")


class FakeRun:
    """What the package gives: takes rows whose steps rise, and what the run is about."""

    def __init__(self, **about: Any) -> None:
        self.about, self.rows, self.finished = about, list[tuple[int, dict[str, float]]](), False
        self.id = about["id"] or "abc123"

    def log(self, values: dict[str, float], step: int) -> None:
        assert not self.finished
        assert not self.rows or step >= self.rows[-1][0]
        self.rows.append((step, values))

    def finish(self) -> None:
        self.finished = True


def test_wandb_gets_what_the_log_has(uneven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package, which is too heavy for a test; a call that goes on continues the same run."""
    runs: list[FakeRun] = []
    package = types.ModuleType("wandb")
    package.init = lambda **about: (runs.append(FakeRun(**about)), runs[-1])[1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", package)
    plan = {**SETTINGS, "loggers": ["wandb"]}
    train(recipe(uneven, trainer={**plan, "max_minutes": 1e-9}), tmp_path / "silicon")
    train(recipe(uneven, trainer=plan), tmp_path / "silicon")
    rows = [(int(r["step"]), k, float(v)) for r in log(tmp_path / "silicon") for k, v in r.items() if v and k != "step"]
    sent = [(step, k, v) for run in runs for step, values in run.rows for k, v in values.items()]
    assert [row[:2] for row in sent] == [row[:2] for row in rows]
    assert [row[2] for row in sent] == pytest.approx([row[2] for row in rows], rel=1e-6)
    assert all(run.finished for run in runs)
    assert [run.about["id"] for run in runs] == [None, "abc123"]
    assert [run.about["resume"] for run in runs] == [None, "allow"]
    assert runs[0].about["config"]["trainer"]["steps"] == 6
    assert runs[0].about["dir"] == str(tmp_path / "silicon")
