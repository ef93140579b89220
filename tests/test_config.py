"""The strict reader of what users write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny import TINY
from triforces_deploy.config import BackboneConfig, ModelConfig, as_dict, read, read_yaml
from triforces_deploy.errors import UserError


def test_a_configuration_survives_being_written_down() -> None:
    assert read(ModelConfig, as_dict(TINY), "x") == TINY


def test_what_is_written_down_is_what_a_file_gives_back() -> None:
    """Also of options, which Python code may give as tuples; a checkpoint is compared with a recipe by this."""
    config = ModelConfig(("Si",), backbone=BackboneConfig("mace", {"correlation": (2, (3,))}))
    assert as_dict(config) == json.loads(json.dumps(as_dict(config)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"elemnts": ["Si"]}, "recipe: unknown key 'elemnts'; did you mean 'elements'?"),
        ({"composition": {"width": "wide"}}, "recipe.composition.width: expected int, got str 'wide'"),
        ({"composition": {"layers": True}}, "recipe.composition.layers: expected int, got bool True"),
        ({"elements": "Si"}, "recipe.elements: expected a list, got str"),
        ({"backbone": []}, "recipe.backbone: expected a mapping of keys, got list"),
        ([1], "recipe: expected a mapping of keys, got list"),
    ],
)
def test_what_does_not_fit_is_named(data: object, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read(ModelConfig, data, "recipe")
    assert str(caught.value) == message


def test_numbers_as_people_write_them() -> None:
    assert read(ModelConfig, {"cutoff": 5}, "x").cutoff == 5.0
    assert read(ModelConfig, {"cutoff": "5e0"}, "x").cutoff == 5.0
    assert read(ModelConfig, {"structure": None}, "x").structure is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML in line"),
        ("- a", "expected a mapping of keys, got list"),
        ("", "expected a mapping of keys, got nothing"),
        ("model:\n  cutoff: 4\n  cutoff: 5\n", "key 'cutoff' stands twice"),
        ("\x00", "not text in YAML"),
    ],
)
def test_files_that_are_no_recipes(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_yaml(tmp_path / "r.yaml")
