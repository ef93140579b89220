"""The same trajectory in units metal and real, number by number, with LAMMPS' own constants."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import units
from ase.data import atomic_masses, atomic_numbers

from tests.lammps import cases
from tests.lammps.harness import Array, Host

KCAL_PER_MOL = 23.060549
"""1 eV as LAMMPS converts it."""
STEPS = 25


def trajectory(host: Host, artifact: Path, style: str) -> dict[str, Array]:
    """Every step of a run at constant energy, in eV, Å, ps and bar; energies and pressures are the potential's alone."""
    atoms = cases.triclinic()
    velocities = np.random.default_rng(3).normal(scale=5.0, size=(len(atoms), 3))  # Å/ps
    host.load(atoms)
    tilt = atoms.cell.array
    kinds = [("Si", "Ge").index(s) + 1 for s in atoms.get_chemical_symbols()]
    time, energy = (1.0, 1.0) if style == "metal" else (1e3, KCAL_PER_MOL)  # of LAMMPS in ps, and in eV
    host(f"clear\nunits {style}\nboundary p p p\natom_modify map array sort 0 0")
    host(f"region all prism 0 {tilt[0, 0]} 0 {tilt[1, 1]} 0 {tilt[2, 2]} {tilt[1, 0]} {tilt[2, 0]} {tilt[2, 1]} units box")
    host("create_box 2 all")
    host.lmp.create_atoms(len(atoms), None, kinds, atoms.positions.flatten().tolist(), (velocities / time).flatten().tolist())
    # The constants of the two styles differ in the seventh digit; masses make up for it, so that accelerations are the same.
    metal = 1 / 1.0364269e-4
    factor = host.lmp.extract_global("ftm2v") * energy * time**2 / metal
    for kind, symbol in enumerate(("Si", "Ge"), start=1):
        host(f"mass {kind} {factor * atomic_masses[atomic_numbers[symbol]]:.17g}")
    host(f"pair_style triforces {artifact}\npair_coeff * * Si Ge\nneighbor 1.0 bin\nneigh_modify every 1 delay 0 check yes")
    host("compute each all pe/atom\ncompute stress all stress/atom NULL virial\ncompute virial all pressure NULL virial")
    host(f"thermo_style custom step pe c_virial[*]\nthermo_modify norm no\ntimestep {1e-3 * time}\nfix 1 all nve")
    return _followed(host, energy)


def _followed(host: Host, energy: float) -> dict[str, Array]:
    pressure = host.lmp.extract_global("nktv2p") * energy / 1.6021765e6
    rows: dict[str, list[Any]] = {"energy": [], "virial": [], "forces": [], "positions": [], "each": [], "stress": []}
    for step in range(STEPS):
        host("run 0" if step == 0 else "run 1 post no")
        n = host.lmp.get_natoms()
        rows["energy"].append(host.lmp.get_thermo("pe") / energy)
        rows["virial"].append(host.lmp.numpy.extract_compute("virial", 0, 1) / pressure)
        rows["forces"].append(np.array(host.lmp.gather_atoms("f", 1, 3)) / energy)
        rows["positions"].append(np.array(host.lmp.gather_atoms("x", 1, 3)))
        rows["each"].append(np.array((ctypes.c_double * n)(*host.lmp.gather("c_each", 1, 1)[:n])) / energy)
        rows["stress"].append(np.array(host.lmp.gather("c_stress", 1, 6)) / pressure)
    return {name: np.array(values) for name, values in rows.items()}


def test_real_is_metal_converted(host: Host, tiny_artifact: Path) -> None:
    metal, real = (trajectory(host, tiny_artifact, style) for style in ("metal", "real"))
    assert "units real (converted from eV), newton on, cutoff 4 A" in host.log.read_text()
    assert np.abs(metal["positions"][-1] - metal["positions"][0]).max() > 0.05, "nothing moved"
    for name, values in metal.items():
        assert np.abs(values).max() > 1e-3
        np.testing.assert_allclose(real[name], values, rtol=0, atol=1e-10 * np.abs(values).max(), err_msg=name)
    np.testing.assert_allclose(KCAL_PER_MOL * units.kcal / units.mol, 1.0, rtol=1e-6)


def test_others_are_refused(host: Host, tiny_artifact: Path) -> None:
    host("clear\nunits electron\nregion all block 0 20 0 20 0 20\ncreate_box 1 all\ncreate_atoms 1 single 1 1 1\nmass 1 28.085")
    host(f"pair_style triforces {tiny_artifact}\npair_coeff * * Si")
    with pytest.raises(Exception, match="cannot give energies in units electron; write 'units metal' or 'units real'"):
        host("run 0")
