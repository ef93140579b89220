"""Energies and properties in one fit: the sum of what each says alone, with labels that some structures lack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.io import write
from typer.testing import CliRunner

from tests.training.small import column, recipe, structures, train
from triforces_deploy import checkpoint
from triforces_deploy.calculator import TriForcesCalculator
from triforces_deploy.cli import app
from triforces_deploy.errors import UserError
from triforces_deploy.export.exporting import ExportOptions, export
from triforces_deploy.training.evaluate import evaluate
from triforces_deploy.training.evaluate_properties import evaluate_properties
from triforces_deploy.training.joint import JointFit
from triforces_deploy.training.objective import losses, predict
from triforces_deploy.training.properties import PropertyFit
from triforces_deploy.training.recipe import Recipe, load_recipe

PROPERTIES: list[dict[str, Any]] = [{"name": "ge"}, {"name": "mixed", "kind": "binary"}]


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One in three structures has no energy, another third no properties."""
    found = structures(6, 4)
    for k, atoms in enumerate(found):
        share = float((atoms.numbers == 32).mean())
        if k % 3 != 1:
            atoms.info |= {"ge": share, "mixed": int(share > 0)}
        if k % 3 == 2:
            atoms.calc = None
    path = tmp_path_factory.mktemp("joint") / "labels.extxyz"
    write(path, found, format="extxyz")
    return path


def plan_of(path: Path, joint: bool = True, **sections: Any) -> Recipe:
    model = {"properties": PROPERTIES, **sections.pop("model", {})}
    return recipe(path, **{**sections, "model": model, "loss": {"joint": joint, "properties": {"ge": 3}}})


@pytest.fixture(scope="module")
def fitted(labels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fitted")
    assert train(plan_of(labels), folder).status == "finished"
    return folder


def test_the_losses_are_those_of_both_fits(labels: Path) -> None:
    joint, alone = JointFit(plan_of(labels)), PropertyFit(plan_of(labels, joint=False))
    model = joint.new_learner()
    alone.fit_to_labels(model)
    batch = joint.data.train.packs[0].batch([0, 1, 2, 4, 5])
    found = joint.losses(model, batch)
    _, *energies = losses(predict(model, batch.graph, create_graph=True), batch, joint.plan.loss)
    truth = dict(zip(("loss_energy", "loss_forces", "loss_stress"), energies, strict=True)) | alone.losses(model, batch)
    assert list(found) == list(joint.weights) == list(truth)
    for name, loss in found.items():
        assert float(loss.detach()) == pytest.approx(float(truth[name].detach()), rel=1e-9), name
    assert joint.counts(batch) == {
        "loss_energy": 3.0, "loss_forces": 3.0, "loss_stress": 3.0, "loss_ge": 3.0, "loss_mixed": 3.0,
    }  # fmt: skip
    joint.total(found).backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for part in ("head.", "properties.", "interaction."):
        own = [g for name, g in gradients.items() if name.startswith(part) and g is not None]
        assert own, part
        assert all(bool(g.isfinite().all()) for g in own)


def test_a_fit_learns_both_and_goes_where_each_goes(fitted: Path, labels: Path, tmp_path: Path) -> None:
    loss = column(fitted, "loss")
    assert loss[-1] < 0.8 * loss[0]
    model, provenance = checkpoint.load(fitted / "last.ckpt")
    energies = column(fitted, "val_forces_rmse")[-1]
    assert provenance["validation"]["energies"]["forces_rmse"] == pytest.approx(energies, rel=1e-6)
    properties = evaluate_properties(fitted / "last.ckpt", part="validation").model
    assert column(fitted, "val_ge_mae")[-1] == pytest.approx(vars(properties.errors["ge"])["mae"], rel=1e-6)
    (atoms,) = structures(1, 1)
    calculator = TriForcesCalculator.of_checkpoint(fitted / "last.ckpt")
    atoms.calc = calculator
    before = atoms.get_potential_energy()
    export(fitted / "last.ckpt", tmp_path / "model.pt", ExportOptions(precision="float64", backends=()))
    atoms.calc = TriForcesCalculator(tmp_path / "model.pt")
    assert atoms.get_potential_energy() == pytest.approx(before, rel=1e-10)
    assert model.properties is not None


def test_the_command_prints_both(fitted: Path, tmp_path: Path) -> None:
    every = [a for k, a in enumerate(structures(6, 4)) if k % 3 == 0]
    for atoms in every:
        share = float((atoms.numbers == 32).mean())
        atoms.info |= {"ge": share, "mixed": int(share > 0)}
    write(tmp_path / "all.extxyz", every, format="extxyz")
    command = [
        "evaluate",
        str(fitted / "best.ckpt"),
        "--structures",
        str(tmp_path / "all.extxyz"),
        "-o",
        str(tmp_path / "v.npz"),
    ]
    said = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert set(said) == {"energies", "properties"}
    truth = evaluate(fitted / "best.ckpt", tmp_path / "all.extxyz").model
    assert said["energies"]["model"]["forces_mae"] == pytest.approx(truth.forces_mae)
    with np.load(tmp_path / "v.properties.npz") as values:
        assert values["target.ge"].shape == (8, 1, 2)
    assert (tmp_path / "v.npz").is_file()


def test_a_stopped_run_goes_on_to_the_same_weights(labels: Path, fitted: Path, tmp_path: Path) -> None:
    assert train(plan_of(labels, trainer={"max_minutes": 1e-9}), tmp_path).status == "out of time"
    assert train(plan_of(labels), tmp_path).status == "finished"
    one, two = (checkpoint.load(p / "last.ckpt")[0].state_dict() for p in (fitted, tmp_path))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_mistakes_are_named(labels: Path, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: demo\nloss: {joint: true}\n")
    with pytest.raises(UserError, match=r"a\.yaml\.loss\.joint: expected model\.properties beside conservative forces"):
        load_recipe(tmp_path / "a.yaml")
    bare = structures(6, 1)
    for atoms in bare:
        atoms.calc, atoms.info["ge"], atoms.info["mixed"] = None, 0.5, 1
    write(tmp_path / "bare.extxyz", bare, format="extxyz")
    with pytest.raises(UserError, match="no structure to train on has an energy"):
        JointFit(plan_of(tmp_path / "bare.extxyz"))
