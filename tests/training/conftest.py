"""One undisturbed training, to look at and to compare others with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.small import labels, recipe, train


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labels(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of 40 steps that nothing disturbed; nobody may change it."""
    folder = tmp_path_factory.mktemp("straight")
    assert train(recipe(data), folder).status == "finished"
    return folder
