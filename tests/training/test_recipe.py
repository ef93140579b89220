"""Recipes: those of the package hold, and what a slip of the pen gives is one helpful line."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from tests.training.small import MODEL
from triforces_deploy import checkpoint
from triforces_deploy.config import ModelConfig, as_dict, read
from triforces_deploy.errors import UserError
from triforces_deploy.model import Model
from triforces_deploy.training.recipe import RECIPES, Recipe, load_recipe


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint for recipes that go on from one."""
    path = tmp_path_factory.mktemp("start") / "start.ckpt"
    checkpoint.save(path, Model(read(ModelConfig, MODEL, "model")), {})
    return path


@pytest.mark.parametrize("name", sorted(p.stem for p in RECIPES.glob("*.yaml")))
def test_the_recipes_of_the_package_build_a_model(name: str, start: Path) -> None:
    after = start if name in ("finetune", "properties") else None
    recipe = load_recipe(name, start=after)
    assert recipe == load_recipe(RECIPES / f"{name}.yaml", start=after)
    smaller = {
        "esen": {"channels": 4, "hidden": 4, "edge_channels": 4, "n_layers": 1},
        "mace": {"channels": 2},
        "orb_v3": {"latent": 16, "n_layers": 1, "mlp_hidden": 16},
    }[recipe.model.backbone.name]
    options = {**recipe.model.backbone.options, **smaller}
    backbone = dataclasses.replace(recipe.model.backbone, options=options)
    assert Model(dataclasses.replace(recipe.model, backbone=backbone)).facts().elements == recipe.model.elements


def test_the_paper_recipe_names_every_key(start: Path) -> None:
    """The kitchen sink: a key added to the code has to be shown there, or in the two recipes around pretraining."""
    written = yaml.safe_load((RECIPES / "paper.yaml").read_text())
    known = as_dict(load_recipe("paper"))
    del known["data"]["validation_files"]
    del known["model"]["composition"]["table"], known["model"]["zbl_overlay"]  # made by export
    del known["model"]["direct_stress"]  # made by `tfdeploy import`
    del known["model"]["uncertainty"]  # made by `tfdeploy uncertainty`
    del known["objective"], known["views"], known["init"]
    assert keys(written) == keys(known)
    pretrain, finetune = (yaml.safe_load((RECIPES / f"{name}.yaml").read_text()) for name in ("pretrain", "finetune"))
    assert keys(pretrain["objective"]) == keys(as_dict(load_recipe("pretrain"))["objective"])
    assert keys(pretrain["views"]) == keys(as_dict(load_recipe("pretrain"))["views"])
    assert keys(finetune["init"]) == keys(as_dict(load_recipe("finetune", start=start))["init"])


def test_what_a_recipe_does_not_say_of_its_model_is_that_of_the_checkpoint(start: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"model: {{structure: null, head_hidden: [8]}}\ninit: {{checkpoint: {start}}}")
    expected = {**MODEL, "structure": None, "head_hidden": [8]}
    assert load_recipe(path).model == read(ModelConfig, expected, "model")
    path.write_text(f"model: [Si]\ninit: {{checkpoint: {start}}}")
    with pytest.raises(UserError, match=r"mine.yaml.model: expected a mapping of keys, got list"):
        load_recipe(path)
    with pytest.raises(UserError, match=r"pretrained/best.ckpt does not exist; expected a checkpoint to start from"):
        load_recipe("finetune")


def keys(data: object) -> object:
    return {k: keys(v) for k, v in data.items()} if isinstance(data, dict) else None


def test_a_recipe_survives_being_written_down() -> None:
    recipe = load_recipe("demo")
    assert read(Recipe, yaml.safe_load(yaml.safe_dump(as_dict(recipe))), "again") == recipe


def test_files_and_streams_are_replaced_and_nothing_else() -> None:
    plain = load_recipe("demo")
    changed = load_recipe("demo", files=[Path("a.extxyz"), Path("b.db")], streams=False)
    assert changed.data.files == ("a.extxyz", "b.db")
    assert changed.model.composition is None
    assert changed.model.structure is None
    back = dataclasses.replace(
        changed,
        data=dataclasses.replace(changed.data, files=plain.data.files),
        model=dataclasses.replace(changed.model, composition=plain.model.composition, structure=plain.model.structure),
    )
    assert back == plain


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {elements: [Si]}\ntrainer: {step: 5}", r"unknown key 'step'; did you mean 'steps'\?"),
        ("model: {elements: [Si]}\noptimizer: {lr: 1}", r"unknown key 'optimizer'; did you mean 'optimiser'\?"),
        ("data: {files: [a]}", "missing key 'model'"),
        ("model: {elements: [Si]}\nloss: {forces_form: l1}", "expected one of mae, mse, huber, l2; got 'l1'"),
        ("model: {elements: [Si]}\ntrainer: {steps: ten}", "trainer.steps: expected int, got str 'ten'"),
        ("model: {elements: [Si]}\ntrainer: {steps: 0}", "trainer.steps: expected a number above 0, got 0"),
        ("model: {elements: [Si]}\ntrainer: {max_minutes: -1}", "trainer.max_minutes: expected a number above 0"),
        ("model: {elements: [Si]}\noptimiser: {lr: .nan}", "optimiser.lr: expected a number above 0, got nan"),
        ("model: {elements: [Si]}\noptimiser: {ema: 1.5}", "optimiser.ema: expected a number in 0 … 1"),
        ("model: {elements: [Si]}\nloss: {forces: -1}", "loss.forces: expected 0 or more"),
        ("model: {elements: [Si]}\nloss: {energy: 0, forces: 0, stress: 0}", "all weights are 0"),
        ("model: {elements: [Si]\ntrainer", "not valid YAML"),
        ("- a list", "expected a mapping"),
    ],
)
def test_slips_of_the_pen(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)
    assert "recipe.yaml" in str(caught.value)


def test_a_recipe_that_is_not_there() -> None:
    with pytest.raises(
        UserError, match=r"dmo does not exist; expected .* one of the names demo, .*finetune, .*paper, .*pretrain"
    ):
        load_recipe("dmo")


def test_a_folder_of_that_name_does_not_hide_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make demo` leaves one called demo."""
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_recipe("demo").model.elements == ("Si", "Ge")


def test_a_base_is_changed_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: demo\nmodel: {cutoff: 4.0}\nseed: 3")
    changed, demo = load_recipe(tmp_path / "mine.yaml"), load_recipe("demo")
    assert changed == dataclasses.replace(demo, model=dataclasses.replace(demo.model, cutoff=4.0), seed=3)
    (tmp_path / "next.yaml").write_text("base: mine.yaml")
    with pytest.raises(UserError, match=r"next\.yaml\.base: mine\.yaml has a base itself, demo"):
        load_recipe(tmp_path / "next.yaml")
    (tmp_path / "odd.yaml").write_text("base: 3")
    with pytest.raises(UserError, match=r"odd\.yaml\.base: expected the name of a recipe, got 3"):
        load_recipe(tmp_path / "odd.yaml")
