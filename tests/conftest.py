"""Files made once for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_model
from triforces_deploy import checkpoint
from triforces_deploy.export.exporting import ExportOptions, export

os.environ["OMP_NUM_THREADS"] = "1"  # LAMMPS' side would take all cores, and so would every child process
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--lmp", help="a LAMMPS program with ML-IAP's Python coupling, for the tests marked native")
    parser.addoption("--lmp-args", default="", help="options of that program, e.g. '-k on t 1 -sf kk'")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a program for them, the native tests are not there."""
    if config.getoption("--lmp") is None:
        native = [item for item in items if item.get_closest_marker("native")]
        config.hook.pytest_deselected(items=native)
        items[:] = [item for item in items if item not in native]


@pytest.fixture(scope="session", autouse=True)
def home_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A list of trusted files and a cache of rebuilt payloads for this session alone, for child processes too."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDEPLOY_HOME", str(folder))
        patch.delenv("TFDEPLOY_TRUST", raising=False)
        yield folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float64 checkpoint of :func:`tiny_model`."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.ckpt"
    checkpoint.save(path, tiny_model(), {"data": "random weights"})
    return path


@pytest.fixture(scope="session")
def tiny_artifact(tiny_checkpoint: Path) -> Path:
    """The eager form of it: quick to make, quick to open."""
    path = tiny_checkpoint.with_name("tiny.pt")
    export(tiny_checkpoint, path, ExportOptions(backends=()))
    return path


@pytest.fixture(scope="session")
def compiled_artifact(tiny_checkpoint: Path) -> Path:
    """The same with every compiled form, made once for the whole session."""
    path = tiny_checkpoint.with_name("compiled.pt")
    export(tiny_checkpoint, path, ExportOptions())
    return path
