"""Dispersion of Grimme's D3 by LAMMPS' own pair style beside ours: energies, forces and pressure add up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase.io import write

from tests.lammps import cases
from tests.lammps.harness import Host, expected, frames, lmp
from triforces_deploy.potential import Potential
from triforces_deploy.units import LAMMPS_BAR

D3 = "dispersion/d3 original pbe 9.0 6.0"


def test_the_sum_of_both(host: Host, tiny: Potential, tiny_artifact: Path) -> None:
    atoms = cases.triclinic()
    host.load(atoms)
    host(f"pair_style {D3}\npair_coeff * * Si Ge")
    other = host.result()
    assert other.energy < -0.5
    host(f"pair_style hybrid/overlay triforces {tiny_artifact} {D3}")
    host("pair_coeff * * triforces Si Ge\npair_coeff * * dispersion/d3 Si Ge")
    found, ours = host.result(), expected(atoms, tiny)
    np.testing.assert_allclose(found.energies, ours.energies + other.energies, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.forces, ours.forces + other.forces, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.virial, ours.virial + other.virial, rtol=0, atol=1e-8)


def test_two_ranks_are_one(host: Host, tiny_artifact: Path, tmp_path: Path) -> None:
    """Along a few steps; what one rank says of the same structures is above."""
    atoms = cases.triclinic()
    write(tmp_path / "a.data", atoms, format="lammps-data", specorder=["Si", "Ge"], units="metal")
    script = f"""
units metal
read_data a.data
mass 1 28.085
mass 2 72.63
neighbor 1.0 bin
pair_style hybrid/overlay triforces {tiny_artifact} {D3}
pair_coeff * * triforces Si Ge
pair_coeff * * dispersion/d3 Si Ge
velocity all create 1000 7 loop all
fix 1 all nve
compute cold all pressure NULL virial
dump 1 all custom 2 a.dump id x y z fx fy fz
dump_modify 1 sort id format float %.16g
thermo 2
thermo_style custom step pe c_cold[*]
thermo_modify norm no format float %.16g
run 2
"""
    ended = lmp(script, tmp_path, ranks=2)
    assert ended.code == 0, ended.text
    table = ended.text.split("   Step ")[1].split("Loop time")[0].splitlines()[1:]
    thermo = [[float(x) for x in line.split()] for line in table if line.strip()[:1].isdigit()]
    for frame, (_, energy, *pressure) in zip(frames(tmp_path / "a.dump"), thermo, strict=True):
        atoms.positions = frame[:, 1:4]
        host.load(atoms)
        host(f"pair_style hybrid/overlay triforces {tiny_artifact} {D3}")
        host("pair_coeff * * triforces Si Ge\npair_coeff * * dispersion/d3 Si Ge")
        alone = host.result()
        np.testing.assert_allclose(frame[:, 4:], alone.forces, rtol=0, atol=1e-9)
        assert abs(energy - alone.energy) < 1e-9
        virial = np.array(pressure) * atoms.get_volume() / LAMMPS_BAR
        np.testing.assert_allclose(virial, alone.virial[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]], rtol=0, atol=1e-8)
