"""Two processes with half a batch each against one with all of it: the same gradients, once they are added up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.small import labels, recipe, recipe_file
from triforces_deploy.training.pretraining import Pretraining
from triforces_deploy.training.recipe import load_recipe

OBJECTIVE: dict[str, Any] = {
    "denoise": {"head": "gradient"},
    "masked": {"hidden": [8]},
    "lejepa": {"slices": 64, "hidden": 16, "width": 8, "of": "streams"},
    "barlow": {"weight": 0.01, "hidden": [16], "width": 8},
    "simsiam": {"hidden": 16, "width": 8},
}

RANK = """
import sys
import torch
from torch import distributed
from triforces_deploy.training.pretraining import Pretraining
from triforces_deploy.training.recipe import load_recipe

torch.set_num_threads(1)
plan, store, rank, out = sys.argv[1:]
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=2)
task = Pretraining(load_recipe(plan))
learner = task.new_learner()
batch = next(task.batches(range(1), int(rank), 2))
parts, counts = task.losses(learner, batch), task.counts(batch)
total = torch.zeros((), dtype=torch.float64)
for name, part in parts.items():
    shared = torch.tensor(counts[name], dtype=torch.float64)
    distributed.all_reduce(shared)
    total = total + task.weights[name] * part * counts[name] / shared
total.backward()
gradients = {n: p.grad for n, p in learner.named_parameters() if p.grad is not None}
for gradient in gradients.values():
    distributed.all_reduce(gradient)
torch.save(gradients, out)
distributed.destroy_process_group()
"""


def test_two_ranks_have_the_gradients_of_one(tmp_path: Path) -> None:
    """Structures of unequal size and numbers of masked atoms, five in two unequal shares."""
    plan = recipe(labels(tmp_path), objective=OBJECTIVE, views={"radius": [3.0, 3.6], "draw": ["mask", "tile", "vacancies"]})
    file = recipe_file(tmp_path / "plan.yaml", plan)
    outs = [tmp_path / f"gradients.{rank}" for rank in range(2)]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", RANK, str(file), str(tmp_path / "store"), str(k), str(out)],
            stderr=subprocess.PIPE,
        )
        for k, out in enumerate(outs)
    ]
    said = [process.communicate(timeout=200)[1].decode() for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], said
    task = Pretraining(load_recipe(file))
    learner = task.new_learner()
    batch = next(task.batches(range(1)))
    shares = [next(task.batches(range(1), rank, 2)) for rank in range(2)]
    assert len({len(share.numbers) for share in shares}) == 2
    task.total(task.losses(learner, batch)).backward()
    alone = {n: p.grad for n, p in learner.named_parameters() if p.grad is not None}
    largest = max(float(gradient.abs().max()) for gradient in alone.values() if gradient is not None)
    for found in (torch.load(out) for out in outs):
        assert found.keys() == alone.keys()
        for name, gradient in alone.items():
            assert gradient is not None
            torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-11 * largest, msg=name)
    for term in OBJECTIVE:
        head = [g for n, g in alone.items() if f"terms.{term}." in n or (term == "denoise" and "model.head" in n)]
        assert max(float(g.abs().max()) for g in head if g is not None) > 1e-6, term


def test_shares_add_up_to_the_counts_of_the_whole(tmp_path: Path) -> None:
    task = Pretraining(recipe(labels(tmp_path), objective=OBJECTIVE, views={"radius": [3.0, 3.6]}))
    whole, *shares = (task.counts(next(task.batches(range(1), k, n))) for k, n in ((0, 1), (0, 2), (1, 2)))
    for name in ("loss_denoise", "loss_masked"):
        assert whole[name] == pytest.approx(sum(share[name] for share in shares))
    assert whole["loss_lejepa"] == 1.0
