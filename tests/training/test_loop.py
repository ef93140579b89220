"""Training: what it optimises and what it leaves behind."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from tests.training.small import column, equal, log, recipe, train, weights
from triforces_deploy import checkpoint
from triforces_deploy.training import loop
from triforces_deploy.training.evaluate import evaluate
from triforces_deploy.training.fit import learning_rate
from triforces_deploy.training.recipe import OptimiserConfig

# ---- what a run leaves behind ----


def test_the_loss_falls(straight: Path) -> None:
    loss, validation = column(straight, "loss"), column(straight, "val_forces_rmse")
    assert loss[-1] < 0.5 * loss[0]
    assert validation[-1] < 0.75 * validation[0]


def test_the_log_has_its_lines(straight: Path) -> None:
    steps = [(int(r["step"]), bool(r["loss"])) for r in log(straight)]
    training = [(s, True) for s in range(4, 41, 4)]
    assert sorted(steps) == sorted([*training, (15, False), (30, False), (40, False)])
    assert [s for s, _ in steps] == sorted(s for s, _ in steps)
    weighted = 50 * np.array(column(straight, "loss_energy")) + 100 * np.array(column(straight, "loss_forces"))
    np.testing.assert_allclose(column(straight, "loss"), weighted + 50 * np.array(column(straight, "loss_stress")), rtol=1e-6)


def test_the_best_checkpoint_is_the_best(straight: Path) -> None:
    rows = [r for r in log(straight) if r["val_score"]]
    best = min(rows, key=lambda r: float(r["val_score"]))
    provenance = checkpoint.load(straight / "best.ckpt")[1]
    assert provenance["step"] == int(best["step"])
    assert provenance["validation"]["forces_rmse"] == pytest.approx(float(best["val_forces_rmse"]), rel=1e-6)
    assert checkpoint.load(straight / "last.ckpt")[1]["step"] == 40


def test_validation_judges_what_is_saved(straight: Path) -> None:
    """The averaged weights in the file score what the log says, to its last digit."""
    found = evaluate(straight / "last.ckpt", part="validation", batch_size=3).model
    for name in ("energy_mae", "energy_rmse", "forces_mae", "forces_rmse", "stress_mae", "stress_rmse"):
        assert column(straight, f"val_{name}")[-1] == pytest.approx(getattr(found, name), rel=1e-7), name


def test_a_checkpoint_knows_where_it_comes_from(straight: Path, data: Path) -> None:
    provenance = checkpoint.load(straight / "last.ckpt")[1]
    assert provenance["files"] == {str(data): hashlib.sha256(data.read_bytes()).hexdigest()}
    assert provenance["split"] == json.loads((straight / "split.json").read_text())
    assert provenance["frames"] == {"train": 8, "validation": 8, "test": 8}
    assert provenance["recipe"]["seed"] == 3
    assert provenance["packages"]["torch"] == torch.__version__


def test_precision_of_the_network_and_of_the_sums(data: Path, tmp_path: Path) -> None:
    train(recipe(data, trainer={"steps": 2, "precision": "float32"}), tmp_path)
    found = weights(tmp_path / "last.ckpt")
    assert {k for k, v in found.items() if v.dtype == torch.float64} == {"references", "scale"}
    assert found["head.layers.0.weight"].dtype == torch.float32
    assert float(found["references"][14]) != 0
    assert float(found["scale"]) > 0.1


def test_the_seed_decides(data: Path, straight: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)  # of no consequence
    plan = recipe(data, trainer={"steps": 4, "validate_every": 4})
    train(plan, tmp_path / "a")
    torch.rand(7)
    train(plan, tmp_path / "b")
    train(dataclasses.replace(plan, seed=4), tmp_path / "c")
    a, b, c = (weights(tmp_path / x / "last.ckpt") for x in "abc")
    assert equal(a, b)
    assert not equal(a, c)


# ---- what a step does ----


def test_the_average_of_the_weights_is_what_is_saved(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """a ← w at the first step, then a ← d a + (1 − d) w, by hand."""
    seen: list[dict[str, torch.Tensor]] = []
    plain = loop._Recorder.on_step

    def watched(self: Any, *arguments: Any) -> None:
        seen.append({k: v.detach().clone() for k, v in self.fit.model.named_parameters()})
        plain(self, *arguments)

    monkeypatch.setattr(loop._Recorder, "on_step", watched)
    train(recipe(data, trainer={"steps": 6}, optimiser={"ema": 0.7}), tmp_path)
    average = seen[0]
    for now in seen[1:]:
        average = {k: 0.7 * average[k] + 0.3 * now[k] for k in average}
    saved = weights(tmp_path / "last.ckpt")
    assert len(seen) == 6
    for name, value in average.items():
        torch.testing.assert_close(saved[name], value, rtol=0, atol=1e-14)
    assert max(float((saved[k] - seen[-1][k]).abs().max()) for k in average) > 1e-4


def test_the_schedule() -> None:
    """Against torch's own, put together from its pieces."""
    from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

    config = OptimiserConfig(lr=0.2, warmup=10, final=0.05)
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.2)
    warm = LinearLR(optimiser, 0.1, 1.0, total_iters=9)
    rival = SequentialLR(optimiser, [warm, CosineAnnealingLR(optimiser, 90, eta_min=0.01)], milestones=[10])
    for step in range(100):
        assert learning_rate(config, step, 100) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-9), step
        optimiser.step()
        rival.step()
    assert learning_rate(config, 100, 100) == pytest.approx(0.01)
    assert learning_rate(OptimiserConfig(lr=0.2, warmup=0), 0, 100) == 0.2
    assert learning_rate(OptimiserConfig(lr=0.2, warmup=50), 4, 5) == pytest.approx(0.02)  # shorter than its warm-up


def test_the_optimiser_follows_the_schedule(straight: Path, data: Path) -> None:
    plan = recipe(data)
    for row in log(straight):
        assert float(row["lr"]) == pytest.approx(learning_rate(plan.optimiser, int(row["step"]) - 1, 40), rel=1e-7)
    groups = torch.load(straight / "state.ckpt")["fit"]["optimiser"]["param_groups"]
    assert {g["lr"] for g in groups} == {learning_rate(plan.optimiser, 39, 40)}
    assert [g["weight_decay"] for g in groups] == [0.01, 0.0]


@pytest.mark.parametrize("clip", [0.02, 1e6])
def test_gradients_are_clipped(clip: float, data: Path, tmp_path: Path) -> None:
    norms = []

    def look(optimiser: torch.optim.Optimizer, *_: Any) -> None:
        found = [p.grad for g in optimiser.param_groups for p in g["params"] if p.grad is not None]
        norms.append(float(torch.cat([g.flatten() for g in found]).norm()))

    hook = register_optimizer_step_post_hook(look)
    try:
        train(recipe(data, trainer={"steps": 3}, optimiser={"clip": clip}), tmp_path)
    finally:
        hook.remove()
    assert len(norms) == 3
    if clip < 1:
        assert norms == pytest.approx([clip] * 3, rel=1e-4)
    else:
        assert min(norms) > 0.1
