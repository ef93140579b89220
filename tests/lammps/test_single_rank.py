"""What people do with a pair style: relax, heat, squeeze, restart, mix, delete, again and again, on one rank."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from tests.lammps import cases
from tests.lammps.harness import Host, Result, expected, opened, run
from tests.lammps.test_against_ase import check
from triforces_deploy.lammps_plugin.build import LIBRARY
from triforces_deploy.potential import Potential
from triforces_deploy.units import LAMMPS_BAR

POTENTIALS = Path("share/lammps/potentials")


@pytest.fixture
def crystal(host: Host, tiny_artifact: Path) -> Host:
    host.load(cases.orthogonal())
    host(f"pair_style triforces {tiny_artifact}\npair_coeff * * Si Ge")
    return host


def check_where_it_is(host: Host, potential: Potential) -> None:
    """Without velocities, so that the pressure is the potential's alone."""
    host("velocity all set 0 0 0")
    atoms = host.atoms()
    check(host.result(), expected(atoms, potential), atoms.get_volume())


def test_relaxation_dynamics_and_restart(crystal: Host, tiny: Potential, tmp_path: Path, tiny_artifact: Path) -> None:
    start = crystal.result().energy
    crystal("minimize 0 1e-3 20 100")
    relaxed = expected(crystal.atoms(), tiny).energy
    assert relaxed < start - 0.1
    check_where_it_is(crystal, tiny)
    crystal("change_box all triclinic\nfix 1 all box/relax tri 0 vmax 0.01\nminimize 0 1e-3 5 20\nunfix 1")
    assert not np.allclose(crystal.atoms().cell.array, cases.orthogonal().cell.array, atol=1e-4)
    check_where_it_is(crystal, tiny)
    crystal("velocity all create 600 1 dist gaussian\nfix 1 all npt temp 600 600 0.05 tri 0 0 0.5\nrun 15\nrun 5\nrun 5 pre no")
    crystal(f"unfix 1\nwrite_restart {tmp_path / 'restart'}")
    check_where_it_is(crystal, tiny)
    before = crystal.atoms()
    crystal(f"clear\nread_restart {tmp_path / 'restart'}\nneighbor 1.0 bin\ncompute each all pe/atom")
    crystal("compute sum all reduce sum c_each")
    crystal(f"pair_style triforces {tiny_artifact}\npair_coeff * * Si Ge")
    np.testing.assert_allclose(crystal.atoms().positions, before.positions, atol=1e-12)
    check_where_it_is(crystal, tiny)


def test_atoms_that_vanish_and_change_their_element(crystal: Host, tiny: Potential) -> None:
    crystal.result()
    crystal("group gone id 3 17 40\ndelete_atoms group gone compress no\nreset_atoms id")
    check_where_it_is(crystal, tiny)
    crystal("set atom 5 type 1\nset atom 6 type 2")
    check_where_it_is(crystal, tiny)
    # Swaps happen between neighbor lists, on positions that do not move.
    before = crystal.atoms().get_chemical_symbols()
    crystal("thermo_style custom step pe\nfix 2 all atom/swap 1 5 4711 1e5 ke no types 1 2\nrun 3\nunfix 2")
    assert crystal.atoms().get_chemical_symbols() != before
    check_where_it_is(crystal, tiny)


def test_forces_are_the_slope_of_its_energy(crystal: Host) -> None:
    found, start, h = crystal.result(), crystal.atoms().positions, 1e-3
    for atom, axis in ((0, 0), (9, 1), (30, 2)):
        energies = []
        for step in (-2, -1, 1, 2):
            moved = start.copy()
            moved[atom, axis] += step * h
            crystal.move(moved)
            energies.append(crystal.result().energy)
        slope = (energies[0] - 8 * energies[1] + 8 * energies[2] - energies[3]) / (12 * h)
        assert -slope == pytest.approx(found.forces[atom, axis], rel=1e-6, abs=1e-8)


def test_stress_is_the_slope_of_its_energy(host: Host, tiny_artifact: Path) -> None:
    """All six components, on a cluster, where a strain in any direction needs no other box."""
    cluster = Atoms(cases.orthogonal()[:12], cell=np.diag([30.0, 30.0, 30.0]), pbc=False)
    cluster.positions += 10.0
    host.load(cluster)
    host(f"pair_style triforces {tiny_artifact}\npair_coeff * * Si Ge")
    found, h = host.result().virial, 1e-4
    scale = abs(found).max()
    for a, b in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)):
        strain = np.zeros((3, 3))
        strain[a, b] = strain[b, a] = 1.0 if a == b else 0.5
        energies = []
        for step in (-2, -1, 1, 2):
            host.move(10.0 + (cluster.positions - 10.0) @ (np.eye(3) + step * h * strain))
            energies.append(host.result().energy)
        slope = (energies[0] - 8 * energies[1] + 8 * energies[2] - energies[3]) / (12 * h)
        assert -slope == pytest.approx(found[a, b], abs=1e-6 * scale)


def test_periodic_pressure_is_the_slope_of_its_energy(crystal: Host) -> None:
    found, h = crystal.result().virial, 1e-4
    for a, name in enumerate("xyz"):
        energies = []
        for old, new in ((0, -2), (-2, -1), (-1, 1), (1, 2)):
            crystal(f"change_box all {name} scale {(1 + new * h) / (1 + old * h):.17g} remap units box")
            energies.append(crystal.result().energy)
        crystal(f"change_box all {name} scale {1 / (1 + 2 * h):.17g} remap units box")
        slope = (energies[0] - 8 * energies[1] + 8 * energies[2] - energies[3]) / (12 * h)
        assert -slope == pytest.approx(found[a, a], rel=1e-6)


@pytest.mark.parametrize("order", ["triforces {} zbl 2.0 3.0", "zbl 2.0 3.0 triforces {}"])
def test_adds_to_other_styles(host: Host, tiny: Potential, tiny_artifact: Path, order: str) -> None:
    atoms = cases.triclinic()
    host.load(atoms)
    zbl = "pair_coeff 1 1 {0} 14 14\npair_coeff 1 2 {0} 14 32\npair_coeff 2 2 {0} 32 32"
    host("pair_style zbl 2.0 3.0\n" + zbl.format(""))
    other = host.result()
    host(f"pair_style hybrid/overlay {order.format(tiny_artifact)}\npair_coeff * * triforces Si Ge\n" + zbl.format("zbl"))
    ours = expected(atoms, tiny)
    total = Result(ours.energies + other.energies, ours.forces + other.forces, ours.virial + other.virial)
    assert other.energy > 0.01
    check(host.result(), total, atoms.get_volume())


def test_leaves_types_mapped_to_null_alone(host: Host, tiny: Potential, tiny_artifact: Path) -> None:
    """Argon among silicon and germanium: ours sees the latter as if nothing else were there."""
    ours = cases.orthogonal()
    argon = Atoms("Ar3", positions=[[1.0, 1.2, 1.4], [5.0, 6.0, 7.1], [9.0, 3.0, 2.0]], cell=ours.cell, pbc=True)
    both = argon[:1] + ours[:30] + argon[1:2] + ours[30:] + argon[2:]
    is_argon = np.array(both.get_chemical_symbols()) == "Ar"
    elements = ("Ar", "Ge", "Si")
    host.load(both, elements)
    host(f"pair_style hybrid triforces {tiny_artifact} lj/cut 2.0")
    host("pair_coeff * * triforces NULL Ge Si\npair_coeff 1 * lj/cut 0.0 1.0")
    found, wanted = host.result(), expected(ours, tiny)
    np.testing.assert_allclose(found.energies[is_argon], 0)
    np.testing.assert_allclose(found.forces[is_argon], 0)
    check(Result(found.energies[~is_argon], found.forces[~is_argon], found.virial), wanted, ours.get_volume())


def test_per_atom_virial_adds_up(crystal: Host) -> None:
    crystal("compute stress all stress/atom NULL virial\ncompute total all reduce sum c_stress[*]")
    crystal("thermo_style custom step pe press c_total[*]")
    found = crystal.result()
    crystal("thermo_style custom step pe press c_total[*]\nrun 0")
    sums = np.array(crystal.lmp.numpy.extract_compute("total", 0, 1))
    np.testing.assert_allclose(-sums / LAMMPS_BAR, found.virial[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]], rtol=1e-10, atol=1e-10)


def test_the_builtin_mliap_still_works(host: Host) -> None:
    """LAMMPS' own example: a linear SNAP model for InP through `mliap`, against the same model through `snap`."""
    import lammps

    folder = Path(lammps.__file__).parent / POTENTIALS
    atoms = Atoms("InP", scaled_positions=[[0, 0, 0], [0.25, 0.27, 0.22]], cell=np.diag([5.83, 5.83, 5.83]), pbc=True) * (
        2,
        2,
        2,
    )
    energies = []
    zbl = "zbl 4.0 4.2"
    ours = f"mliap model linear {folder / 'InP_JCPA2020.mliap.model'} descriptor sna {folder / 'InP_JCPA2020.mliap.descriptor'}"
    for style, coefficients in (
        (ours, "pair_coeff * * mliap In P"),
        ("snap", f"pair_coeff * * snap {folder / 'InP_JCPA2020.snapcoeff'} {folder / 'InP_JCPA2020.snapparam'} In P"),
    ):
        host.load(atoms, ("In", "P"))
        host(f"pair_style hybrid/overlay {style} {zbl}\n{coefficients}")
        host("pair_coeff 1 1 zbl 49 49\npair_coeff 1 2 zbl 49 15\npair_coeff 2 2 zbl 15 15")
        energies.append(host.result().energy)
    assert energies[0] == pytest.approx(energies[1], rel=1e-12)
    assert abs(energies[0]) > 1.0


def test_two_instances_at_once(crystal: Host, tiny: Potential, tiny_artifact: Path, tmp_path: Path) -> None:
    with opened(tmp_path) as second:
        second.load(cases.triclinic())
        second(f"pair_style triforces {tiny_artifact}\npair_coeff * * Si Ge")
        for instance in (second, crystal, second):
            check_where_it_is(instance, tiny)
    check_where_it_is(crystal, tiny)


def test_clear_does_not_take_its_name_away(tiny_artifact: Path, tmp_path: Path) -> None:
    """Loaded by hand, so that no path leads LAMMPS to it when `clear` makes the maps of styles anew."""
    program = (
        "import os, lammps\n"
        f"path = os.environ.pop('LAMMPS_PLUGIN_PATH').split(':')[0] + '/{LIBRARY}'\n"
        "host = lammps.lammps(cmdargs=['-log', 'none', '-screen', 'none'])\n"
        "host.commands_string(f'plugin load {path}\\nclear\\nunits metal\\nregion r block 0 9 0 9 0 9\\ncreate_box 1 r')\n"
        f"host.commands_string('pair_style mliap unified {tiny_artifact} 0\\npair_coeff * * Si\\nmass 1 28.085\\nrun 0')\n"
        "print('energy', host.get_thermo('pe'))\n"
    )
    ended = run([sys.executable, "-c", program], tmp_path, 1, timeout=120)
    assert ended.code == 0, ended.text
    assert "energy 0.0" in ended.text


def test_start_up_block(host: Host, tiny_artifact: Path) -> None:
    host.load(cases.orthogonal())
    host(f"pair_style mliap unified {os.path.relpath(tiny_artifact)} 1\npair_coeff * * Si Ge\nmass 2 60.0")
    host.result()
    host.result()
    text = host.log.read_text()
    block = text[text.rindex("TriForces potential") :]
    assert text.count("TriForces potential tiny.pt") >= 1
    for line in (
        "1 = Si (mass 28.085)  2 = Ge (mass 60)",
        "units metal, newton on, cutoff 4 A, ghost cutoff 5 A",
        "float64 on cpu, back end eager, 1 torch thread",
        "exchange: none, ghosts are folded onto their owners",
        "composition: live, counted over the whole system: Si48 Ge16",
        "WARNING: mass 60 of type 2 is not that of Ge (72.63)",
        "'mliap unified FILE' is not needed",
    ):
        assert line in block
