"""Grain boundaries against coincidence site lattices and coordination, dislocations against a Burgers circuit."""

from __future__ import annotations

import itertools
import sys
from collections import deque

import numpy as np
import pytest
from ase import Atoms
from ase.neighborlist import neighbor_list

from triforces_deploy.defects.building import defective
from triforces_deploy.defects.extended import DislocationDipole, GrainBoundary, parse_extended
from triforces_deploy.defects.hosts import crystal_of
from triforces_deploy.errors import UserError


def coordination(atoms: Atoms, bond: float) -> np.ndarray:
    return np.bincount(neighbor_list("i", atoms, 1.2 * bond), minlength=len(atoms))


@pytest.mark.parametrize(
    ("plane", "axis"), [((2, 1, 0), (0, 0, 1)), ((3, 1, 0), (0, 0, 1)), ((1, 1, 1), (1, -1, 0)), ((2, 2, 1), (1, -1, 0))]
)
def test_sigma_counts_the_sites_that_coincide(plane: tuple[int, int, int], axis: tuple[int, int, int]) -> None:
    """The cubic lattice and its mirror image share every Σ-th site, counted one by one."""
    boundary = GrainBoundary(plane, axis)
    n = np.array(plane)
    sites = np.array(list(itertools.product(range(-9, 9), repeat=3)))  # 18 is a multiple of the periods 3 and 9; not of 5
    half = np.array(list(itertools.product(range(boundary.sigma * 2), repeat=3))) if boundary.sigma == 5 else sites
    mirrored = half - 2 * (half @ n)[:, None] * n / (n @ n)
    shared = np.abs(mirrored - np.rint(mirrored)).max(axis=1) < 1e-9
    assert shared.mean() == pytest.approx(1 / boundary.sigma, rel=1e-12)


@pytest.mark.parametrize(("host", "neighbours", "bond"), [("Cu", 12, 3.61 / 2**0.5), ("Si", 4, 5.431 * 3**0.5 / 4)])
def test_the_coherent_twin_is_perfect_around_every_atom(host: str, neighbours: int, bond: float) -> None:
    """Σ3 (111) of fcc and of diamond: all first shells whole, no volume taken, yet a stacking of its own."""
    crystal = crystal_of(host)
    atoms = GrainBoundary((1, 1, 1), (1, -1, 0)).build(crystal, 1500)
    np.testing.assert_array_equal(coordination(atoms, bond), neighbours)
    np.testing.assert_allclose(atoms.get_volume() / len(atoms), crystal.cell.get_volume() / len(crystal.cell), rtol=1e-9)
    shells = np.bincount(neighbor_list("i", atoms, 1.7 * bond))
    assert len(np.unique(shells)) > 1  # the stacking is hexagonal at the twin


def test_a_grain_boundary_is_disturbed_at_two_planes_only() -> None:
    atoms = GrainBoundary((2, 1, 0), (0, 0, 1)).build(crystal_of("Cu"), 4000)
    assert 0.75 < len(atoms) / 4000 < 1.3
    height = atoms.cell.lengths()[2]
    wrong = coordination(atoms, 3.61 / 2**0.5) != 12
    away = np.abs((atoms.positions[:, 2] / height * 2 + 0.5) % 1 - 0.5) * height / 2
    assert wrong.any()
    assert away[wrong].max() < 4.0
    mirrored = atoms.copy()
    mirrored.positions[:, 2] *= -1
    mirrored.wrap()
    one, other = (np.sort(neighbor_list("d", a, 4.0)) for a in (atoms, mirrored))
    np.testing.assert_allclose(one, other, atol=1e-9)
    assert neighbor_list("d", atoms, 0.69 * 3.61 / 2**0.5).size == 0


def bonds_of(vectors: np.ndarray) -> np.ndarray:
    """The few distinct bonds of a slightly strained crystal, (B, 3), each the mean of those that are alike."""
    found = []
    while len(vectors):
        alike = np.linalg.norm(vectors - vectors[0], axis=1) < 0.35 * np.linalg.norm(vectors[0])
        if alike.sum() > 20:
            found.append(vectors[alike].mean(axis=0))
        vectors = vectors[~alike]
    return np.array(found)


def burgers(atoms: Atoms, bond: float, centre: np.ndarray) -> np.ndarray:
    """Closure failure in Å around a line along z: walk from atom to atom, every step read as the nearest bond of the crystal.

    Atoms of a ring are given places in the perfect crystal by walking without crossing the half plane behind the centre;
    across it the places of bonded atoms differ from a bond by the Burgers vector.
    """
    moved = atoms.copy()
    middle = atoms.cell.array.sum(axis=0) / 2
    moved.positions += middle - centre
    moved.wrap()
    flat = moved.positions - middle
    radius, angle = np.hypot(flat[:, 0], flat[:, 1]), np.arctan2(flat[:, 1], flat[:, 0])
    ring = (radius > 2 * bond) & (radius < 4.5 * bond)
    i, j, vectors = neighbor_list("ijD", moved, 1.2 * bond)
    within = ring[i] & ring[j]
    i, j, vectors = i[within], j[within], vectors[within]
    bonds = bonds_of(vectors)
    steps = bonds[np.linalg.norm(vectors[:, None] - bonds, axis=2).argmin(axis=1)]
    cut = np.abs(angle[i] - angle[j]) > np.pi
    onwards: dict[int, list[tuple[int, np.ndarray]]] = {}
    for a, b, step in zip(i[~cut], j[~cut], steps[~cut], strict=True):
        onwards.setdefault(int(a), []).append((int(b), step))
    place, queue = {int(i[0]): np.zeros(3)}, deque([int(i[0])])
    while queue:
        a = queue.popleft()
        for b, step in onwards.get(a, []):
            if b not in place:
                place[b] = place[a] + step
                queue.append(b)
    over = [(int(a), int(b), s) for a, b, s in zip(i, j, steps, strict=True) if angle[a] - angle[b] > np.pi]
    failures = np.array([place[a] + step - place[b] for a, b, step in over if a in place and b in place])
    period = atoms.cell.array[2, 2]  # walks may end a period further along the line
    failures[:, 2] -= period * np.rint(failures[:, 2] / period)
    assert len(failures) >= 5
    alike = np.linalg.norm(failures - np.median(failures, axis=0), axis=1) < 0.15 * bond
    assert alike.mean() > 0.6  # the same along the cut, but for walks that went through the core
    return failures[alike].mean(axis=0)


@pytest.mark.parametrize(
    ("host", "character", "elastic", "bond", "length", "along"),
    [
        ("Fe", "screw", (243, 138, 122), 2.87 * 3**0.5 / 2, 2.87 * 3**0.5 / 2, 1.0),
        ("Si", "60", (166, 64, 80), 5.43 * 3**0.5 / 4, 5.43 / 2**0.5, 0.5),
        ("Cu", "edge", (168, 121, 75), 3.61 / 2**0.5, 3.61 / 2**0.5, 0.0),
    ],
)
def test_the_burgers_vectors_are_opposite_and_of_the_right_length(
    host: str, character: str, elastic: tuple[float, float, float], bond: float, length: float, along: float
) -> None:
    crystal = crystal_of(host)
    atoms = DislocationDipole(character, elastic).build(crystal, 3000)
    assert 0.5 < len(atoms) / 3000 < 1.5
    assert atoms.cell.handedness == 1
    assert (np.diag(atoms.cell.array) > 0).all()
    assert atoms.cell.lengths()[2] > 10
    line = atoms.cell.array[0] + atoms.cell.array[1]
    one, other = (burgers(atoms, bond, x * line) for x in (0.25, 0.75))
    assert np.linalg.norm(one) == pytest.approx(length, rel=0.03)
    np.testing.assert_allclose(one, -other, atol=0.05 * length)
    assert abs(one[2]) / np.linalg.norm(one) == pytest.approx(along, abs=0.03)
    np.testing.assert_allclose(atoms.get_volume() / len(atoms), crystal.cell.get_volume() / len(crystal.cell), rtol=0.03)


@pytest.mark.parametrize(
    ("host", "words", "message"),
    [
        ("Cu", ("2,1/0,0,1", None, None), "expected PLANE/AXIS in whole numbers, such as 2,1,0/0,0,1"),
        ("Cu", ("0,0,0/0,0,1", None, None), "the plane 0,0,0 is none"),
        ("Cu", ("2,1,0/1,0,0", None, None), "does not lie in the plane"),
        ("Cu", ("1,0,0/0,0,1", None, None), "mirrors a cubic crystal into itself"),
        ("Mg", ("2,1,0/0,0,1", None, None), "needs a cubic crystal"),
        ("Cu", ("2,1,0/0,0,1", "screw", None), "either --boundary or --dislocation"),
        ("Cu", (None, "screw", None), "--dislocation needs --elastic C11,C12,C44 in GPa"),
        ("Cu", (None, "screw", "1,2"), "--elastic 1,2: expected C11,C12,C44 in GPa"),
        ("Cu", (None, "screw", "100,200,50"), "are of no stable crystal"),
        ("Cu", (None, "60", "168,121,75"), "no dislocation '60' in Cu; expected screw, edge"),
        ("Mg", (None, "screw", "168,121,75"), "expected a diamond, zincblende, fcc or bcc crystal"),
    ],
)
def test_refusals_are_one_line(host: str, words: tuple[str | None, str | None, str | None], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        defective(host, 500, extended=parse_extended(*words))
    assert "\n" not in str(caught.value)


def test_without_matscipy_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matscipy", None)
    with pytest.raises(UserError, match=r"pip install 'triforces-deploy\[dislocations\]'"):
        DislocationDipole("screw", (168, 121, 75)).build(crystal_of("Cu"), 500)


def test_point_defects_go_into_a_bicrystal() -> None:
    cell = defective("Cu", 2000, ["V:3", "Ni:5"], extended=parse_extended("2,1,0/0,0,1", None, None), apart=4.0)
    assert len(cell.atoms) == cell.perfect - 3
    assert cell.summary() == "Σ5 (2 1 0)[0 0 1], 3 V, 5 Ni"
    assert (cell.atoms.numbers == 28).sum() == 5
