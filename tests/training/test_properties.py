"""Fits to properties: what the files say, the loss by hand, a fit that learns, and its evaluation."""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.io import write
from typer.testing import CliRunner

from tests.training.small import column, labelled, recipe, structures, train
from triforces_deploy import checkpoint
from triforces_deploy.cli import app
from triforces_deploy.errors import UserError
from triforces_deploy.export.exporting import ExportOptions, export
from triforces_deploy.training.batches import Stream
from triforces_deploy.training.converting import Limits, convert
from triforces_deploy.training.data import load
from triforces_deploy.training.evaluate_properties import evaluate_properties
from triforces_deploy.training.packed import open_packed
from triforces_deploy.training.properties import PropertyFit
from triforces_deploy.training.property_labels import mean_and_spread
from triforces_deploy.training.recipe import Recipe
from triforces_deploy.training.splitting import fold_of, split_by_fold

PROPERTIES: list[dict[str, Any]] = [
    {"name": "ge"},
    {"name": "n_ge", "pooling": "sum"},
    {"name": "push", "kind": "vector", "of": "atom"},
    {"name": "squeeze", "kind": "tensor"},
]


def labelled_structures() -> list[Atoms]:
    """What Lennard-Jones pushes and squeezes, and how much germanium there is; two structures do not say the latter."""
    found = structures(6, 4)
    for k, atoms in enumerate(found):
        if k not in (3, 7):
            atoms.info["ge"] = float((atoms.numbers == 32).mean())
        atoms.info["n_ge"] = int((atoms.numbers == 32).sum())
        atoms.info["squeeze"] = atoms.get_stress(voigt=False).ravel()
        atoms.arrays["push"] = atoms.get_forces()
        atoms.calc = None
    return found


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("properties") / "labels.extxyz"
    write(path, labelled_structures(), format="extxyz")
    return path


def plan_of(path: Path, properties: list[dict[str, Any]] | None = None, **sections: Any) -> Recipe:
    return recipe(path, **{**sections, "model": {"properties": properties or PROPERTIES, **sections.get("model", {})}})


@pytest.fixture(scope="module")
def fitted(labels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 60 steps on all four; nobody may change it."""
    folder = tmp_path_factory.mktemp("fitted")
    plan = plan_of(labels, trainer={"steps": 60, "validate_every": 30}, loss={"properties": {"ge": 3}})
    assert train(plan, folder).status == "finished"
    return folder


# ---- what files say ----


def test_files_bring_their_properties_read_now_or_converted(labels: Path, tmp_path: Path) -> None:
    truth = labelled_structures()
    convert([labels], tmp_path / "out", 3.6, Limits())
    for path in (labels, tmp_path / "out"):
        plan = plan_of(path)
        parts = load(plan.data, plan.model)
        (pack,) = parts.train.packs
        batch = pack.batch([5, 3])
        assert {name: tuple(t.shape) for name, t in batch.targets.items()} == {
            "ge": (2, 1), "n_ge": (2, 1), "push": (16, 3), "squeeze": (2, 9),
        }  # fmt: skip
        np.testing.assert_allclose(batch.targets["ge"][:, 0], [truth[5].info["ge"], np.nan])
        np.testing.assert_allclose(batch.targets["n_ge"][:, 0], [truth[k].info["n_ge"] for k in (5, 3)])
        np.testing.assert_allclose(batch.targets["push"], np.concatenate([truth[k].arrays["push"] for k in (5, 3)]), atol=1e-7)
        np.testing.assert_allclose(batch.targets["squeeze"][0], truth[5].info["squeeze"], atol=1e-7)


def test_what_ase_takes_for_results_is_a_property_too(tmp_path: Path) -> None:
    """dipole and charges; a last structure without them is NaN, and one with another shape is refused or left out."""
    water = molecule("H2O")
    water.info["dipole"] = np.array([0.0, 0.1, 1.85])
    water.arrays["charges"] = np.array([-0.8, 0.4, 0.4])
    write(tmp_path / "w.extxyz", [water, molecule("NH3")], format="extxyz")
    convert([tmp_path / "w.extxyz"], tmp_path / "out", 3.0, Limits())
    packed = open_packed(tmp_path / "out" / "index.json")
    assert packed.about.targets == ("charges", "dipole")
    np.testing.assert_allclose(packed.target("dipole"), [[0.0, 0.1, 1.85], [np.nan] * 3])
    np.testing.assert_allclose(packed.target("charges")[:, 0], [-0.8, 0.4, 0.4, *[np.nan] * 4])
    one, other = labelled_structures()[:2]
    other.info["ge"] = np.array([1.0, 2.0, 3.0])
    write(tmp_path / "x.extxyz", [one, other], format="extxyz")
    result = convert([tmp_path / "x.extxyz"], tmp_path / "x", 3.0, Limits())
    assert [row.why for row in result.left_out] == ["'ge' has 3 numbers per structure, earlier 1 per structure"]
    plan = plan_of(tmp_path / "x.extxyz")
    with pytest.raises(UserError, match=r"x\.extxyz@1: 'ge' has 3 numbers"):
        load(plan.data, plan.model)


def test_a_folder_of_the_first_format_is_still_read(labels: Path, tmp_path: Path) -> None:
    """It had numbers of structures only, and did not say so."""
    convert([labels], tmp_path / "out", 3.6, Limits())
    index = tmp_path / "out" / "index.json"
    content = json.loads(index.read_text())
    content |= {"format": 1, "targets": ["ge"]}
    del content["components"], content["of_atoms"]
    index.write_text(json.dumps(content))
    found = open_packed(index).target("ge")[:, 0]
    np.testing.assert_allclose(found, [a.info.get("ge", np.nan) for a in labelled_structures()])


def test_turned_structures_have_turned_labels(labels: Path) -> None:
    """Forces and stress of the structures as they lie in the batch, from ASE again."""
    plan = plan_of(labels)
    part = load(plan.data, plan.model).train
    stream = Stream(part, 4, "structures", 1, rotate=True)
    batch, still = next(stream.batches(range(1))), part.batch(stream.chosen(0))
    for g, k in enumerate(stream.chosen(0)):
        atoms = labelled_structures()[part.members[k, 1]]
        old = still.graph.cell[g].numpy()
        turn = np.linalg.solve(old, batch.graph.cell[g].numpy())  # x → x turn
        atoms.set_cell(atoms.cell.array @ turn)
        atoms.positions = atoms.positions @ turn
        again = labelled(atoms)
        own = batch.graph.batch == g
        np.testing.assert_allclose(batch.targets["push"][own], again.get_forces(), atol=1e-6)
        np.testing.assert_allclose(batch.targets["squeeze"][g].view(3, 3), again.get_stress(voigt=False), atol=1e-7)
        assert not np.allclose(still.targets["push"][own], again.get_forces(), atol=1e-3)


# ---- the loss ----


def test_mean_and_spread_are_numpys_and_what_is_missing_does_not_count(labels: Path) -> None:
    plan = plan_of(labels)
    part = load(plan.data, plan.model).train
    truth = [labelled_structures()[k] for k in part.members[:, 1]]
    ge, n_ge, push, squeeze = plan.model.properties

    def found(config: Any) -> tuple[float, float]:
        return mean_and_spread(config, part.chunks())

    known = np.array([a.info["ge"] for a in truth if "ge" in a.info])
    assert found(ge) == pytest.approx((known.mean(), known.std()))
    per_atom = np.array([a.info["n_ge"] / 8 for a in truth])
    assert found(n_ge) == pytest.approx((per_atom.mean(), per_atom.std()))
    forces = np.concatenate([a.arrays["push"] for a in truth])
    assert found(push) == pytest.approx((0.0, np.sqrt((forces**2).mean())), abs=1e-6)
    stress = np.array([a.info["squeeze"].reshape(3, 3) for a in truth])
    pressure = np.trace(stress, axis1=1, axis2=2).mean() / 3
    assert found(squeeze) == pytest.approx((pressure, np.sqrt(((stress - pressure * np.eye(3)) ** 2).mean())), abs=1e-6)


@pytest.mark.parametrize("form", ["mae", "mse", "l2", "huber"])
def test_the_loss_is_the_formula_and_shares_make_up_the_whole(form: str, labels: Path) -> None:
    task = PropertyFit(plan_of(labels, loss={"properties_form": form, "huber_delta": 0.3}))
    model = task.new_learner()
    assert model.properties is not None
    whole = task.data.train.packs[0].batch([2, 3, 4, 7, 9])
    found = model.properties_of(whole.graph)
    losses = task.losses(model, whole)
    for k, config in enumerate(task.of_properties.wanted):
        per = 8 if config.pooling == "sum" else 1
        error = ((found[config.name] - whole.targets[config.name]) / per / model.properties.spread[k]).detach().numpy()
        error = error[np.isfinite(error).all(1)]
        size = np.abs(error)
        huber = np.where(size < 0.3, 0.5 * size**2, 0.3 * (size - 0.15))
        expected = {"mae": size, "mse": size**2, "l2": np.linalg.norm(error, axis=1), "huber": huber}[form].mean()
        assert float(losses[f"loss_{config.name}"].detach()) == pytest.approx(expected, rel=1e-9), config.name
    assert task.counts(whole) == {"loss_ge": 3.0, "loss_n_ge": 5.0, "loss_push": 40.0, "loss_squeeze": 5.0}
    shares = [task.data.train.packs[0].batch(k) for k in ([2, 3], [4, 7, 9])]
    for name, loss in losses.items():
        total = sum(float(task.losses(model, s)[name].detach()) * task.counts(s)[name] for s in shares)
        assert total / task.counts(whole)[name] == pytest.approx(float(loss.detach()), rel=1e-9)
    task.total(losses).backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for n, p in model.named_parameters() if n.startswith(("properties", "interaction"))]
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients)


# ---- a run ----


def test_a_fit_learns_and_its_log_has_the_errors(fitted: Path) -> None:
    loss = column(fitted, "loss")
    assert loss[-1] < 0.6 * loss[0]
    parts = sum(np.array(column(fitted, f"loss_{p['name']}")) * (3 if p["name"] == "ge" else 1) for p in PROPERTIES)
    np.testing.assert_allclose(loss, parts, rtol=1e-6)
    provenance = checkpoint.load(fitted / "last.ckpt")[1]
    found = evaluate_properties(fitted / "last.ckpt", part="validation", batch_size=3).model
    for name, error in found.errors.items():
        assert column(fitted, f"val_{name}_mae")[-1] == pytest.approx(error.mae, rel=1e-6)
        assert column(fitted, f"val_{name}_rmse")[-1] == pytest.approx(error.rmse, rel=1e-6)
        assert provenance["validation"]["errors"][name]["mae"] == pytest.approx(error.mae, rel=1e-6)
    own = evaluate_properties(fitted / "best.ckpt", part="train")
    for name in ("ge", "n_ge"):
        assert own.model.errors[name].rmse < 0.8 * own.mean.errors[name].rmse, name
    assert "MAE ge" in found.line()


def test_every_figure_is_that_of_the_values(fitted: Path, labels: Path, tmp_path: Path) -> None:
    found = evaluate_properties(fitted / "best.ckpt", labels, tmp_path / "values.npz", batch_size=5)
    truth = labelled_structures()
    with np.load(tmp_path / "values.npz") as values:
        np.testing.assert_allclose(values["target.push"][..., 0], np.concatenate([a.arrays["push"] for a in truth]), atol=1e-7)
        for name, errors in found.model.errors.items():
            label, prediction = np.moveaxis(values[f"target.{name}"], -1, 0)
            label, prediction = (x[np.isfinite(label).all(1)] for x in (label, prediction))
            error = prediction - label
            assert errors.labels == len(label)
            assert (errors.mae, errors.rmse) == pytest.approx((np.abs(error).mean(), np.sqrt((error**2).mean())), rel=1e-9)
            assert errors.r2 == pytest.approx(1 - (error**2).sum() / ((label - label.mean(0)) ** 2).sum(), rel=1e-6)
    model, _ = checkpoint.load(fitted / "best.ckpt")
    assert model.properties is not None
    push = np.concatenate([a.arrays["push"] for a in truth])
    assert found.mean.errors["push"].mae == pytest.approx(np.abs(push).mean(), rel=1e-6)
    n_ge = np.array([a.info["n_ge"] for a in truth])
    assert found.mean.errors["n_ge"].mae == pytest.approx(np.abs(n_ge - 8 * float(model.properties.mean[1])).mean(), rel=1e-9)


def test_the_command_prints_them(fitted: Path) -> None:
    found = CliRunner().invoke(app, ["evaluate", str(fitted / "best.ckpt"), "--baseline", str(fitted / "last.ckpt"), "--json"])
    said = json.loads(found.stdout)
    assert list(said) == ["model", "baseline", "mean of training"]
    assert said["model"] == dataclasses.asdict(evaluate_properties(fitted / "best.ckpt").model)
    table = CliRunner().invoke(app, ["evaluate", str(fitted / "best.ckpt")], env={"COLUMNS": "120"}).stdout
    assert f"{said['model']['errors']['push']['mae']:.4g}" in table


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(labels: Path, tmp_path: Path) -> None:
    plan = plan_of(labels, PROPERTIES[:1], trainer={"steps": 8, "validate_every": 4})
    late = dataclasses.replace(plan, trainer=dataclasses.replace(plan.trainer, max_minutes=1e-9))
    assert train(late, tmp_path / "twice").status == "out of time"
    assert train(plan, tmp_path / "twice").step == 8
    train(plan, tmp_path / "once")
    one, two = (checkpoint.load(tmp_path / name / "last.ckpt")[0].state_dict() for name in ("once", "twice"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_property_is_no_energy(fitted: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is fitted to properties \(ge, n_ge, push, squeeze\)"):
        export(fitted / "best.ckpt", tmp_path / "out.pt", ExportOptions())


def test_streams_and_backbone_of_an_energy_model_are_taken_over(labels: Path, straight: Path, tmp_path: Path) -> None:
    """All but the heads; and these where they are the same."""
    init = {"checkpoint": str(straight / "best.ckpt"), "strategy": "head-transfer"}
    train(plan_of(labels, PROPERTIES[:1], init=init, trainer={"steps": 2, "validate_every": 2}), tmp_path / "run")
    source, end = (checkpoint.load(p)[0].state_dict() for p in (straight / "best.ckpt", tmp_path / "run" / "last.ckpt"))
    same = {name for name in source if torch.equal(source[name], end[name])}
    assert {n for n in source if n.startswith(("interaction", "composition", "structure"))} <= same
    with pytest.raises(UserError, match=r"model\.head_hidden and model\.properties equal, or leave 'heads' out"):
        train(plan_of(labels, init={**init, "strategy": "full"}), tmp_path / "other")


# ---- public sets ----


def pymatgen(atoms: Atoms) -> dict[str, Any]:
    sites = zip(atoms.get_chemical_symbols(), atoms.get_scaled_positions(), strict=True)
    return {
        "lattice": {"matrix": atoms.cell.array.tolist()},
        "sites": [{"species": [{"element": s, "occu": 1}], "abc": abc.tolist()} for s, abc in sites],
    }


def test_a_task_of_matbench_trains_on_its_official_fold(tmp_path: Path) -> None:
    found = structures(11, 1)
    rows = [[pymatgen(a), float((a.numbers == 32).mean())] for a in found]
    path = tmp_path / "matbench_dielectric.json.gz"
    with gzip.open(path, "wt") as stream:
        json.dump({"index": list(range(11)), "columns": ["structure", "n"], "data": rows}, stream)
    plan = plan_of(path, [{"name": "n"}], data={"fold": 1}, trainer={"steps": 2, "validate_every": 2})
    split = load(plan.data, plan.model).split
    assert set(split.test) == {f"mb-dielectric-{k + 1}" for k in FOLDS_OF_11[1]}
    assert len(split.validation) == 2
    train(plan, tmp_path / "run")
    assert evaluate_properties(tmp_path / "run" / "best.ckpt").model.errors["n"].labels == len(FOLDS_OF_11[1])


FOLDS_OF_11 = [[1, 2, 10], [3, 8], [4, 5], [0, 7], [6, 9]]
"""scikit-learn: ``KFold(5, shuffle=True, random_state=18012019).split(range(11))``."""
FIRST_OF_4764 = [
    [7, 9, 18, 24, 30, 35],
    [2, 13, 15, 22, 29, 44],
    [5, 6, 11, 17, 23, 25],
    [0, 1, 3, 8, 10, 16],
    [4, 12, 14, 19, 32, 33],
]
"""The same of 4764 structures, as matbench_dielectric has: the first six of each, and so says MatBench's own list."""


def test_the_folds_are_the_official_ones() -> None:
    assert [fold_of(11, k).tolist() for k in range(5)] == FOLDS_OF_11
    assert [fold_of(4764, k)[:6].tolist() for k in range(5)] == FIRST_OF_4764
    assert sorted(np.concatenate([fold_of(4764, k) for k in range(5)]).tolist()) == list(range(4764))


def test_molecules_of_qm9_train_without_forces(tmp_path: Path) -> None:
    """And atoms far apart have no edges."""
    raw = []
    for k, name in enumerate(["H2O", "NH3", "CH4", "C2H2", "HCN", "CO", "N2", "CH3OH"]):
        atoms = molecule(name)
        raw.append({"z": torch.tensor(atoms.numbers), "pos": torch.tensor(atoms.positions), "y": torch.arange(19.0)[None] * k,
                    "name": f"gdb_{k}", "idx": k})  # fmt: skip
    torch.save(raw, tmp_path / "qm9_v3.pt")
    plan = plan_of(tmp_path / "qm9_v3.pt", [{"name": "Cv", "pooling": "sum"}, {"name": "gap"}],
                   model={"elements": ["H", "C", "N", "O"]}, trainer={"steps": 2, "validate_every": 2})  # fmt: skip
    assert train(plan, tmp_path / "run").status == "finished"


# ---- mistakes ----


def test_mistakes_are_named(labels: Path, tmp_path: Path) -> None:
    def refused(match: str, properties: list[dict[str, Any]], **sections: Any) -> None:
        with pytest.raises(UserError, match=match):
            PropertyFit(plan_of(labels, properties, **sections)).new_learner()

    refused(r"no file has the property 'gap'.* they have: ge, n_ge, push, squeeze", [{"name": "gap"}])
    refused("'push' has 3 numbers per atom, and a scalar has 1 per structure", [{"name": "push"}])
    refused(r"data\.fold needs every structure", [{"name": "ge"}], data={"fold": 0})
    with pytest.raises(UserError, match="some were left out"):
        split_by_fold([str(k) for k in range(9)], np.arange(1, 10), 0, 0.1, 0)
    lopsided = labelled_structures()
    for atoms in lopsided:
        atoms.info["squeeze"] = np.arange(9.0)
    write(tmp_path / "l.extxyz", lopsided, format="extxyz")
    with pytest.raises(UserError, match="no symmetric tensor"):
        PropertyFit(plan_of(tmp_path / "l.extxyz", [{"name": "squeeze", "kind": "tensor"}])).new_learner()
