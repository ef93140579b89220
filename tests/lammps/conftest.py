"""One instance of LAMMPS for all tests that run it inside this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lammps.harness import Host, opened
from triforces_deploy import artifact
from triforces_deploy.potential import Potential


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with opened(tmp_path_factory.mktemp("lammps")) as it:
        yield it


@pytest.fixture(scope="session")
def tiny(tiny_artifact: Path) -> Potential:
    return artifact.load(tiny_artifact)
