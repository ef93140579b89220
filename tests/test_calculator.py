"""ASE's view of an artifact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.md.verlet import VelocityVerlet

from triforces_deploy.calculator import TriForcesCalculator
from triforces_deploy.errors import UserError


def sige() -> Atoms:
    atoms = bulk("Si", "diamond", 5.43, cubic=True)
    atoms.symbols = "Si5Ge3"
    atoms.rattle(0.05, seed=2)
    return atoms


def test_forces_and_stress_pass_ases_own_numerical_check(tiny_artifact: Path) -> None:
    from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress

    atoms = sige()
    atoms.calc = TriForcesCalculator(tiny_artifact)
    np.testing.assert_allclose(atoms.get_forces()[:2], calculate_numerical_forces(atoms, 1e-4, iatoms=[0, 1]), atol=2e-6)
    np.testing.assert_allclose(atoms.get_stress(), calculate_numerical_stress(atoms, 1e-5), atol=1e-7)
    assert atoms.get_potential_energies().sum() == pytest.approx(atoms.get_potential_energy(), abs=1e-12)


def test_the_cached_list_changes_nothing(tiny_artifact: Path) -> None:
    energies = []
    for skin in (0.0, 0.5):
        atoms = sige()
        atoms.calc = TriForcesCalculator(tiny_artifact, skin=skin)
        atoms.set_momenta(np.random.default_rng(0).normal(0, 2.0, (8, 3)))
        VelocityVerlet(atoms, 2 * units.fs).run(30)
        energies.append(atoms.get_potential_energy())
    assert energies[0] == pytest.approx(energies[1], abs=1e-10)


def test_a_molecule_has_no_stress(tiny_artifact: Path) -> None:
    atoms = molecule("Si2H6")[:2]
    atoms.calc = TriForcesCalculator(tiny_artifact)
    assert np.isfinite(atoms.get_potential_energy())
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()


def test_an_unknown_element_is_one_line(tiny_artifact: Path) -> None:
    atoms = Atoms("SiH", [(0, 0, 0), (0, 0, 1.5)], calculator=TriForcesCalculator(tiny_artifact))
    with pytest.raises(UserError, match="element H: the model was trained for Si, Ge only"):
        atoms.get_potential_energy()
