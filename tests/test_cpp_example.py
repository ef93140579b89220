"""The C++ program of examples/cpp against Python: the same package, another host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read, write

from triforces_deploy.artifact import potential, read_artifact
from triforces_deploy.calculator import TriForcesCalculator

EXAMPLE = Path(__file__).parents[1] / "examples" / "cpp"
FACTS = ("4.0", "Si", "Ge")
"""Cutoff and elements of tests/tiny.py."""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, compiled once."""
    path = tmp_path_factory.mktemp("cpp") / "triforces"
    environment = {**os.environ, "PYTHON": sys.executable}
    build = subprocess.run(["bash", EXAMPLE / "build.sh", path], env=environment, capture_output=True, text=True, check=False)
    assert build.returncode == 0, build.stderr
    assert not build.stderr  # no warnings either
    return path


def call(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)


def triclinic() -> Atoms:
    atoms = bulk("Si", "diamond", 5.43).repeat((3, 2, 2))
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + np.random.default_rng(0).uniform(-0.05, 0.05, (3, 3))), scale_atoms=True)
    atoms.symbols[[1, 5]] = "Ge"
    return rattled(atoms)


def slab() -> Atoms:
    """Periodic along two directions, no third cell vector: no stress."""
    atoms = bulk("Si", "diamond", 5.43, cubic=True).repeat((2, 1, 1))
    atoms.pbc, atoms.cell[2] = (True, True, False), 0.0
    return rattled(atoms)


def molecule() -> Atoms:
    return rattled(Atoms("SiGe2Si", [(0, 0, 0), (2.3, 0, 0), (0, 2.4, 0), (0, 0, 2.5)]))


def rattled(atoms: Atoms) -> Atoms:
    atoms.rattle(0.05, seed=1)
    return atoms


@pytest.mark.parametrize("make", [triclinic, slab, molecule])
def test_it_prints_what_python_computes(make: object, program: Path, compiled_artifact: Path, tmp_path: Path) -> None:
    artifact = read_artifact(compiled_artifact)
    package, structure = tmp_path / "model.pt2", tmp_path / "structure.extxyz"
    package.write_bytes(artifact.payloads["aoti"])
    write(structure, make())  # type: ignore[operator]
    done = call(program, package, structure, *FACTS)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    atoms = read(structure)
    atoms.calc = TriForcesCalculator(potential(artifact, "tiny", "eager"))
    expected = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    if atoms.cell.rank == 3:
        expected["stress"] = atoms.get_stress(voigt=False)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert np.abs(value).max() > 1e-3, name  # there is something to compare
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-10 * np.abs(value).max(), err_msg=name)


SILICON = "2\nLattice='5 0 0 0 6 0 1 0 7' Properties=species:S:1:pos:R:3\nSi 0 0 0\nSi 2.3 0 0\n".replace("'", '"')


@pytest.mark.parametrize(
    ("text", "facts", "message"),
    [
        (SILICON, ("0", "Si"), "usage: "),
        (SILICON, ("4.0", "Ge"), "element Si is not among those that the command names"),
        (SILICON, ("4.0", "Qq"), "'Qq' is no chemical symbol"),
        (SILICON.replace("2.3 0", "0.01 0"), FACTS, "two atoms are less than 0.1 Å apart"),
        (SILICON.replace("2\n", "3\n", 1), FACTS, "1 atoms are missing or unreadable"),
        (SILICON.replace("2.3 0", "nan 0"), FACTS, "1 atoms are missing or unreadable"),
        (SILICON.replace("1 0 7", "0 0 0"), FACTS, "periodic along axis 2 but that cell vector is zero"),
        (SILICON.replace("1 0 7", "1 0"), FACTS, "Lattice must be nine finite numbers"),
        (SILICON.replace("1 0 7", "5 0 0"), FACTS, "the cell vectors are linearly dependent"),
        (SILICON.replace("pos", "forces"), FACTS, "expected the columns species:S:1:pos:R:3 first"),
        ("nothing", FACTS, "expected extended xyz"),
        (SILICON, FACTS, "cannot run "),
    ],
)
def test_a_wrong_input_is_one_line(text: str, facts: tuple[str, ...], message: str, program: Path, tmp_path: Path) -> None:
    structure = tmp_path / "structure.extxyz"
    structure.write_text(text)
    done = call(program, tmp_path / "no package.pt2", structure, *facts)
    assert done.returncode == 2
    assert done.stderr.startswith("triforces: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not done.stdout
