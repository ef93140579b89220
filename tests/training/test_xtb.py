"""Labels of tight binding against finite differences and measured molecules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import CalculationFailed, Calculator
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.io import read

from triforces_deploy.errors import UserError
from triforces_deploy.training.labels import LabelConfig, label
from triforces_deploy.training.references import reference
from triforces_deploy.training.xtb import XtbReference

SMALL = LabelConfig(potential="GFN2-xTB", hosts=("H2O", "CH3OH"), trajectories=2, frames=8, every=2)


@pytest.fixture(scope="module")
def second() -> Iterator[XtbReference]:
    with XtbReference("GFN2-xTB") as it:
        yield it


class Energies(Calculator):  # type: ignore[misc]
    """What ASE's finite differences differentiate: nothing but the energy label."""

    implemented_properties = ("energy", "free_energy")

    def __init__(self, method: str) -> None:
        super().__init__()
        self.source = XtbReference(method)

    def calculate(self, atoms: Atoms, *_: object) -> None:
        labelled = self.source.labelled(atoms)
        assert labelled is not None
        energy = labelled.get_potential_energy()
        self.results = {"energy": energy, "free_energy": energy}


def test_forces_and_stress_are_derivatives_of_the_energy() -> None:
    atoms = bulk("C", "diamond", 3.6, cubic=True)
    atoms.rattle(0.05, seed=3)
    labelled = XtbReference("GFN1-xTB").labelled(atoms)
    assert labelled is not None
    moved = atoms.copy()
    moved.calc = Energies("GFN1-xTB")
    np.testing.assert_allclose(labelled.get_forces()[:1], calculate_numerical_forces(moved, eps=1e-3, iatoms=[0]), atol=1e-3)
    stress = calculate_numerical_stress(moved, eps=1e-4)
    np.testing.assert_allclose(labelled.get_stress(), stress, atol=1e-4)
    assert np.abs(stress).max() > 0.01


def test_molecules_relax_to_their_measured_shapes(second: XtbReference) -> None:
    """Bond lengths of water and carbon dioxide: 0.958 and 1.162 Å; the angle of water: 104.5°."""
    water = second.relaxation(molecule("H2O"), [50])[-1]
    assert water.get_distance(0, 1) == pytest.approx(0.958, abs=0.02)
    assert water.get_angle(1, 0, 2) == pytest.approx(104.5, abs=4)
    stretched = molecule("CO2")
    stretched.positions *= 1.1
    relaxed = second.relaxation(stretched, [2, 50])
    assert relaxed[-1].get_distance(0, 1) == pytest.approx(1.162, abs=0.03)
    forces = second.labelled(relaxed[-1])
    assert forces is not None
    assert np.abs(forces.get_forces()).max() < 0.01


def test_a_free_run_keeps_its_energy(second: XtbReference) -> None:
    """Potential energies of a path without thermostat scatter as the temperature asks: 3/2 kT for each of 9 − 3 modes."""
    path = second.dynamics(molecule("H2O"), 300.0, 20, 3, seed=1, langevin=False)
    labelled = [second.labelled(a) for a in path]
    energies = np.array([a.get_potential_energy() for a in labelled if a is not None])
    assert len(energies) == 20
    assert 1e-3 < np.ptp(energies) < 1.0
    again = second.dynamics(molecule("H2O"), 300.0, 20, 3, seed=1, langevin=False)
    np.testing.assert_allclose(again[-1].positions, path[-1].positions, atol=1e-9)


def test_labels_of_molecules_have_no_stress(tmp_path: Path) -> None:
    summary = label(SMALL, tmp_path / "x.extxyz", progress=False)
    frames = read(tmp_path / "x.extxyz", ":")
    assert (summary.frames, summary.failed, len(frames)) == (16, 0, 16)
    assert [a.info["host"] for a in frames[::8]] == ["H2O", "CH3OH"]
    assert all(a.info["potential"] == "GFN2-xTB" and a.info["tblite_version"] for a in frames)
    assert all("stress" not in a.calc.results and not a.pbc.any() for a in frames)
    assert len({round(float(a.get_potential_energy()), 6) for a in frames}) == 16


def test_what_does_not_converge_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def sometimes(self: XtbReference, atoms: Atoms) -> Atoms | None:
        calls.append(atoms)
        return None if len(calls) % 4 == 0 else labelled(self, atoms)

    labelled = XtbReference.labelled
    monkeypatch.setattr(XtbReference, "labelled", sometimes)
    summary = label(SMALL, tmp_path / "x.extxyz", progress=False)
    assert (summary.frames, summary.failed) == (12, 4)


def test_a_path_ends_where_the_electrons_do(second: XtbReference, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise CalculationFailed("SCF not converged")

    with XtbReference("GFN2-xTB") as broken:
        monkeypatch.setattr(broken._calculator, "calculate", fails)
        assert broken.relaxation(molecule("H2O"), [1, 1]) == []
        assert broken.labelled(molecule("H2O")) is None


def test_mistakes_are_one_line() -> None:
    with pytest.raises(UserError, match="host 'CH3CH2OH' is unknown; choose one of Si"):
        label(LabelConfig(hosts=("CH3CH2OH",)), Path("x"), progress=False)
    with pytest.raises(UserError, match=r"host 'C2H7' is unknown; .*; or a molecule of the G2 set"):
        label(LabelConfig(potential="GFN2-xTB", hosts=("C2H7",)), Path("x"), progress=False)
    slab = bulk("Si", "diamond", 5.43)
    slab.pbc = (True, True, False)
    with pytest.raises(UserError, match="a molecule, or a cell that is periodic in three directions"):
        reference("GFN1-xTB").labelled(slab)  # type: ignore[union-attr]
