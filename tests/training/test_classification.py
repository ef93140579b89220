"""Yes or no: figures against their definitions, MatBench's stratified folds, a fit that learns, all five folds."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.io import write
from typer.testing import CliRunner

from tests.training.small import column, recipe, structures, train
from tests.training.test_packed import pymatgen
from triforces_deploy.cli import app
from triforces_deploy.errors import UserError
from triforces_deploy.training.classification import base_log_odds, class_error, cross_entropy
from triforces_deploy.training.data import load
from triforces_deploy.training.evaluate_properties import evaluate_properties
from triforces_deploy.training.folds import all_folds
from triforces_deploy.training.properties import PropertyFit
from triforces_deploy.training.recipe import Recipe
from triforces_deploy.training.splitting import stratified_fold_of

IS_GE: list[dict[str, Any]] = [{"name": "has_ge", "kind": "binary"}]


def plan_of(path: Path, properties: list[dict[str, Any]] | None = None, **sections: Any) -> Recipe:
    return recipe(path, model={"properties": properties or IS_GE}, **sections)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a file of MatBench: 20 crystals, of which one in two holds germanium."""
    found = structures(20, 1)
    for k, atoms in enumerate(found):
        atoms.numbers[:] = 32 if k % 2 else 14
    rows = [[pymatgen(a), bool((a.numbers == 32).any())] for a in found]
    path = tmp_path_factory.mktemp("matbench") / "matbench_has_ge.json.gz"
    with gzip.open(path, "wt") as stream:
        json.dump({"index": list(range(20)), "columns": ["structure", "has_ge"], "data": rows}, stream)
    return path


# ---- figures ----


def test_the_figures_are_what_they_are_defined_as() -> None:
    rng = np.random.default_rng(0)
    yes = rng.random(60) < 0.3
    odds = np.round(rng.normal(size=60) + yes, 1)  # rounded, so that some tie
    found = class_error(yes.astype(float), odds)
    pairs = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(odds[yes], odds[~yes])]
    assert found.roc_auc == pytest.approx(np.mean(pairs), rel=1e-12)
    said = odds > 0
    precision, recall = (yes & said).sum() / said.sum(), (yes & said).sum() / yes.sum()
    assert found.f1 == pytest.approx(2 * precision * recall / (precision + recall), rel=1e-12)
    assert found.balanced_accuracy == pytest.approx((recall + (~yes & ~said).sum() / (~yes).sum()) / 2, rel=1e-12)
    assert found.accuracy == pytest.approx(np.mean(yes == said), rel=1e-12)
    one_kind = class_error(np.zeros(3), np.array([-1.0, -2.0, 1.0]))
    assert np.isnan([one_kind.roc_auc, one_kind.balanced_accuracy]).all()
    assert one_kind.accuracy == pytest.approx(2 / 3)


def test_the_loss_is_the_logarithm_of_the_probability_of_what_is_so() -> None:
    odds, label = torch.tensor([[0.3], [-2.0], [400.0]], dtype=torch.float64), torch.tensor([[1.0], [0.0], [0.0]]).double()
    p = 1 / (1 + np.exp(-np.array([0.3, -2.0])))
    np.testing.assert_allclose(cross_entropy(odds, label), [-np.log(p[0]), -np.log(1 - p[1]), 400.0], rtol=1e-12)
    assert base_log_odds(torch.tensor([1.0, 1, 1, 0])) == pytest.approx(np.log(3.5 / 1.5))


# ---- folds ----

CLASSES = [1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 1, 0, 1]
STRATIFIED = [[8, 10, 11], [3, 4, 6], [0, 5, 7], [9, 12], [1, 2]]
"""scikit-learn 1.9.1: ``StratifiedKFold(5, shuffle=True, random_state=18012019).split(CLASSES, CLASSES)``."""


def test_the_folds_of_classes_are_scikit_learns() -> None:
    assert [stratified_fold_of(np.array(CLASSES, float), k).tolist() for k in range(5)] == STRATIFIED


def test_all_folds_are_reported_and_go_on(task: Path, tmp_path: Path) -> None:
    """Mean and deviation of what each fold's own test says; a second call trains nothing again."""
    plan = plan_of(task, trainer={"steps": 2, "validate_every": 2})
    found = all_folds(plan, tmp_path / "run", progress=False)
    assert found.finished == 5
    own = [evaluate_properties(tmp_path / "run" / f"fold-{k}" / "best.ckpt").model.errors["has_ge"] for k in range(5)]
    assert [e.labels for e in own] == [4] * 5
    accuracy = [vars(e)["accuracy"] for e in own]
    spread = found.errors["has_ge"]["accuracy"]
    assert spread.folds == tuple(accuracy)
    assert (spread.mean, spread.std) == pytest.approx((np.mean(accuracy), np.std(accuracy)))
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*.ckpt")}
    assert all_folds(plan, tmp_path / "run", progress=False) == found
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    rows = [load(plan_of(task, data={"fold": k}).data, plan.model).split.test for k in range(5)]
    assert sorted(name for row in rows for name in row) == sorted(f"mb-has_ge-{k + 1}" for k in range(20))


# ---- a run ----


def test_a_classifier_learns_and_its_figures_are_those_of_its_values(task: Path, tmp_path: Path) -> None:
    plan = plan_of(task, data={"fold": 0}, trainer={"steps": 60, "validate_every": 30})
    assert train(plan, tmp_path / "run").status == "finished"
    loss = column(tmp_path / "run", "loss_has_ge")
    assert loss[-1] < 0.5 * np.log(2)  # ln 2 is what knowing nothing scores
    found = evaluate_properties(tmp_path / "run" / "best.ckpt", task, tmp_path / "values.npz")
    with np.load(tmp_path / "values.npz") as values:
        label, said = values["target.has_ge"][:, 0, 0], values["target.has_ge"][:, 0, 1]
    assert ((said > 0) & (said < 1)).all()
    assert found.model.errors["has_ge"] == class_error(label, said - 0.5)
    assert found.model.errors["has_ge"].roc_auc == 1.0  # type: ignore[union-attr]
    assert found.mean.errors["has_ge"].roc_auc == 0.5  # type: ignore[union-attr]
    shown = (
        CliRunner()
        .invoke(app, ["evaluate", str(tmp_path / "run" / "best.ckpt"), "--structures", str(task)], env={"COLUMNS": "120"})
        .stdout
    )
    assert "ROC-AUC" in shown
    assert "1.0000" in shown


def test_mistakes_are_named(task: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'has_ge' is yes or no, which no sum over atoms is"):
        PropertyFit(plan_of(task, [{**IS_GE[0], "pooling": "sum"}])).new_learner()
    found = structures(6, 1)
    for k, atoms in enumerate(found):
        atoms.info["has_ge"] = 0.5 * k
    write(tmp_path / "a.extxyz", found, format="extxyz")
    with pytest.raises(UserError, match="'has_ge' is not 1 or 0 everywhere"):
        PropertyFit(plan_of(tmp_path / "a.extxyz")).new_learner()
    with pytest.raises(UserError, match=r"no model\.properties"):
        all_folds(recipe(task), tmp_path / "run", progress=False)
