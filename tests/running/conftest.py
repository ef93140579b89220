"""One undisturbed run, and one that was killed, for all that go on from there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lammps.harness import QUIET
from tests.running.faults import Started
from tests.running.small import write_case
from triforces_deploy.running.run import Options, run


@contextmanager
def quiet() -> Iterator[None]:
    """The environment of other tests of LAMMPS' programs; what runs LAMMPS in this process later wants its own back."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.delenv(name, raising=False) if value is None else patch.setenv(name, value)
        yield


@pytest.fixture(autouse=True)
def quiet_ranks() -> Iterator[None]:
    with quiet():
        yield


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("reference")
    with quiet():
        outcome = run(write_case(folder), Options(), progress=False)
    assert (outcome.code, outcome.message) == (0, "")
    return folder


@pytest.fixture(scope="session")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was killed at step 1500, with everything that belonged to it."""
    folder = tmp_path_factory.mktemp("killed")
    write_case(folder)
    with quiet():
        started = Started(folder)
        started.kill_all()
        started.end()
    return folder


@pytest.fixture
def half(killed: Path, tmp_path: Path) -> Path:
    """A copy of it: restarts of steps 800 and 1200, log and dump a little further."""
    return Path(shutil.copytree(killed, tmp_path / "half"))
