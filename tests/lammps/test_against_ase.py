"""LAMMPS' neighbours, folding and tallies against our own periodic graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from tests.lammps import cases
from tests.lammps.harness import Host, Result, expected
from tests.tiny import TINY, tiny_model
from triforces_deploy import artifact, checkpoint
from triforces_deploy.export.exporting import ExportOptions, export
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


def test_a_capped_neighbour_list_is_the_same_as_in_ase(host: Host, tiny: Potential, tmp_path: Path) -> None:
    """Rattled, and a perfect crystal where whole shells share the last place."""
    checkpoint.save(tmp_path / "capped.ckpt", tiny_model(dataclasses.replace(TINY, max_neighbours=6)), {})
    export(tmp_path / "capped.ckpt", tmp_path / "capped.pt", ExportOptions(keep_cap=True, backends=()))
    capped = artifact.load(tmp_path / "capped.pt")
    for atoms in (cases.orthogonal(), bulk("Si", "diamond", 5.43, cubic=True) * (2, 2, 2)):
        host.load(atoms)
        host(f"pair_style triforces {tmp_path / 'capped.pt'}\npair_coeff * * Si Ge")
        check(host.result(), expected(atoms, capped), atoms.get_volume())
    assert "NOT SMOOTH, one rank only" in host.log.read_text()
    assert abs(expected(cases.orthogonal(), capped).energy - expected(cases.orthogonal(), tiny).energy) > 1e-3
