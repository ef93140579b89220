"""LAMMPS' neighbours, folding and tallies against our own periodic graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from tests.lammps import cases
from tests.lammps.harness import Host, Result, expected
from triforces_deploy.potential import Potential


def check(found: Result, wanted: Result, volume: float) -> None:
    np.testing.assert_allclose(found.energies, wanted.energies, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.forces, wanted.forces, rtol=0, atol=1e-8)
    np.testing.assert_allclose(found.virial / volume, wanted.virial / volume, rtol=0, atol=1e-8)


@pytest.mark.parametrize("style", ["triforces {}", "mliap unified {} 0"])
@pytest.mark.parametrize("case", cases.ALL.values(), ids=cases.ALL)
def test_same_numbers_as_ase(host: Host, tiny: Potential, tiny_artifact: Path, case: Callable[[], Atoms], style: str) -> None:
    atoms = case()
    host.load(atoms)
    host(f"pair_style {style.format(tiny_artifact)}\npair_coeff * * Si Ge")
    check(host.result(), expected(atoms, tiny), atoms.get_volume())
    assert host.lmp.get_thermo("pe") == pytest.approx(expected(atoms, tiny).energy, abs=1e-9 * len(atoms))
