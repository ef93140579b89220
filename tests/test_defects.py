"""Crystals and single defects against crystallography."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from ase import Atoms
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list

from triforces_deploy import defects
from triforces_deploy.defects import HOSTS, Near, interstitial, pair, substitution, supercell_of, vacancy
from triforces_deploy.errors import UserError


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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: supercell_of("Sx", 64), "host 'Sx' is unknown; choose one of Si"),
        (lambda: supercell_of("Si", 2), "supercell of 2 atoms .* expected 8"),
        (lambda: defects.antisite(supercell_of("Si", 64), rng()), "an antisite needs a host of two elements"),
        (lambda: substitution(supercell_of("Si", 64), rng(), element="Gee"), "'Gee' is no chemical symbol"),
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
