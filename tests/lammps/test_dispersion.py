"""Dispersion of Grimme's D3 by LAMMPS' own pair style beside ours: energies, forces and pressure add up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase.io import write

from tests.lammps import cases
from tests.lammps.harness import Array, Host, expected, frames, lmp
from triforces_deploy.potential import Potential

D3 = "dispersion/d3 original pbe 10.0 7.0"


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


def test_two_ranks_are_one(tiny_artifact: Path, tmp_path: Path) -> None:
    def run(ranks: int) -> tuple[Array, Array]:
        folder = tmp_path / str(ranks)
        folder.mkdir()
        write(folder / "a.data", cases.orthogonal(), format="lammps-data", specorder=["Si", "Ge"], units="metal")
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
dump 1 all custom 4 a.dump id x y z fx fy fz
dump_modify 1 sort id format float %.16g
thermo 4
thermo_style custom step pe pxx pyy pzz pxy pxz pyz
thermo_modify norm no format float %.16g
run 4
"""
        ended = lmp(script, folder, ranks)
        assert ended.code == 0, ended.text
        table = ended.text.split("   Step ")[1].split("Loop time")[0].splitlines()[1:]
        return frames(folder / "a.dump")[-1], np.array([line.split() for line in table if line.strip()[:1].isdigit()], float)

    (atoms, thermo), (atoms2, thermo2) = run(1), run(2)
    np.testing.assert_allclose(atoms2, atoms, rtol=0, atol=1e-9)
    np.testing.assert_allclose(thermo2, thermo, rtol=1e-9, atol=1e-6)
