"""One undisturbed run, and one that was killed, for all that go on from there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lammps.harness import QUIET
from tests.running.faults import Started
from tests.running.small import write_case
from triforces_deploy.running.run import Options, run


@pytest.fixture(scope="session", autouse=True)
def quiet_ranks() -> Iterator[None]:
    """As the other tests of LAMMPS have it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.delenv(name, raising=False) if value is None else patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def reference(quiet_ranks: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("reference")
    outcome = run(write_case(folder), Options(), progress=False)
    assert (outcome.code, outcome.message) == (0, "")
    return folder


@pytest.fixture(scope="session")
def killed(quiet_ranks: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was killed at step 1500, with everything that belonged to it."""
    folder = tmp_path_factory.mktemp("killed")
    write_case(folder)
    started = Started(folder)
    started.kill_all()
    started.end()
    return folder


@pytest.fixture
def half(killed: Path, tmp_path: Path) -> Path:
    """A copy of it: restarts of steps 800 and 1200, log and dump a little further."""
    return Path(shutil.copytree(killed, tmp_path / "half"))
