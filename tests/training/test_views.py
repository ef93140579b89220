"""Views: what each augmentation does, and that nothing but the seed decides."""

from __future__ import annotations

import dataclasses
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import neighbor_list

from tests.training.small import labels, recipe
from triforces_deploy.errors import UserError
from triforces_deploy.training.augmentations import (
    Structure,
    masked,
    strained,
    structure_of,
    tiled,
    with_vacancies,
)
from triforces_deploy.training.objectives.base import Views
from triforces_deploy.training.pretraining import Pretraining
from triforces_deploy.training.view_config import ViewsConfig
from triforces_deploy.training.views import draw, two_views, view

PLAIN = ViewsConfig(noise=(1e-9, 1e-9), rotate=False, draw=(), chance=1.0)


def crystal() -> Atoms:
    """16 atoms, triclinic, two elements."""
    atoms = bulk("Si", "diamond", 5.43).repeat((2, 2, 2))
    atoms.numbers[::3] = 32
    return atoms


def seen(config: ViewsConfig, atoms: Atoms | None = None, seed: int = 0) -> tuple[Any, Structure, float]:
    return view(crystal() if atoms is None else atoms, config, 4.5, np.random.default_rng(seed))


def distances(atoms: Atoms, cutoff: float) -> np.ndarray[Any, Any]:
    """Sorted, by ASE's own list."""
    return np.sort(neighbor_list("d", atoms, cutoff))


def test_a_view_without_anything_is_the_structure() -> None:
    graph, structure, _ = seen(PLAIN)
    np.testing.assert_allclose(np.sort(graph.edge_vector.norm(dim=1).numpy()), distances(crystal(), 4.5), atol=1e-7)
    assert (structure.numbers == crystal().numbers).all()


def test_noise_is_what_was_added_and_has_no_mean() -> None:
    config = dataclasses.replace(PLAIN, noise=(0.1, 0.2))
    sigmas = []
    for seed in range(30):
        _, structure, sigma = seen(config, seed=seed)
        np.testing.assert_allclose(structure.positions - crystal().positions, structure.noise, atol=1e-12)
        np.testing.assert_allclose(structure.noise.mean(axis=0), 0, atol=1e-14)
        assert 0.1 <= sigma <= 0.2
        sigmas.append(structure.noise.std() / sigma)
    assert np.mean(sigmas) == pytest.approx((15 / 16) ** 0.5, rel=0.05)  # a mean taken off 16 atoms


def test_a_turn_takes_edges_cell_and_noise_along() -> None:
    """The edges of the turned view are those of its own positions and cell; lengths are as before."""
    graph, structure, _ = seen(dataclasses.replace(PLAIN, noise=(0.1, 0.1), rotate=True))
    atoms = Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=True)
    vectors = neighbor_list("D", atoms, 4.5)
    a, b = (v[np.lexsort(np.round(v, 6).T)] for v in (vectors, graph.edge_vector.numpy()))
    np.testing.assert_allclose(a, b, atol=1e-9)
    clean = Atoms(structure.numbers, structure.positions - structure.noise, cell=structure.cell, pbc=True)
    np.testing.assert_allclose(distances(clean, 4.5), distances(crystal(), 4.5), atol=1e-9)
    assert np.abs(structure.cell - crystal().cell.array).max() > 0.1


def test_masked_atoms_are_number_0_in_the_composition_too() -> None:
    config = dataclasses.replace(PLAIN, draw=("mask",), strategies=("atom",))
    graph, structure, _ = seen(config)
    assert 0 < structure.masked.sum() < 16
    assert ((graph.numbers == 0).numpy() == structure.masked).all()
    assert (structure.numbers == crystal().numbers).all()
    assert graph.composition[0, 0] == structure.masked.sum()
    assert graph.composition.sum() == 16


def test_strategies_of_masking() -> None:
    rng, atoms = np.random.default_rng(0), structure_of(crystal())
    counts = [masked(atoms, 0.3, "atom", rng).masked.mean() for _ in range(300)]
    assert np.mean(counts) == pytest.approx(0.3, abs=0.03)
    whole = masked(atoms, 0.3, "element", rng).masked
    assert set(atoms.numbers[whole]) != set(atoms.numbers)
    assert not set(atoms.numbers[whole]) & set(atoms.numbers[~whole])
    region = masked(atoms, 0.3, "region", rng).masked
    assert region.sum() == 5  # one atom and its four neighbours
    d = crystal().get_all_distances(mic=True)[region][:, region]
    assert (np.sort(d, axis=1)[:, 1] < 2.36).all()
    alone = structure_of(bulk("Si", "diamond", 5.43).repeat(4))
    assert 0.1 < masked(alone, 0.3, "element", rng).masked.mean() < 0.5


def test_strain_takes_the_atoms_along() -> None:
    start = structure_of(crystal())
    found = strained(start, 0.02, np.random.default_rng(1))
    inverse = np.linalg.inv(start.cell) @ found.cell
    np.testing.assert_allclose(inverse, inverse.T, atol=1e-12)
    np.testing.assert_allclose(
        found.positions @ np.linalg.inv(found.cell), start.positions @ np.linalg.inv(start.cell), atol=1e-12
    )
    drawn = [strained(start, 0.02, np.random.default_rng(k)).cell for k in range(2000)]
    strains = np.linalg.inv(start.cell) @ np.array(drawn) - np.eye(3)
    assert strains[:, 0, 0].std() == pytest.approx(0.02, rel=0.06)
    assert strains[:, 0, 1].std() == pytest.approx(0.02 / 2**0.5, rel=0.06)


def test_a_tiled_structure_is_the_same_crystal() -> None:
    found = tiled(structure_of(crystal()), 2, 64, np.random.default_rng(0))
    atoms = Atoms(found.numbers, found.positions, cell=found.cell, pbc=found.pbc)
    np.testing.assert_allclose(distances(atoms, 4.5), np.sort(np.tile(distances(crystal(), 4.5), 2)), atol=1e-9)
    assert (found.origin[:16] == np.arange(16)).all()
    assert (found.origin[16:] == -1).all()
    small = structure_of(crystal())
    assert tiled(small, 2, 31, np.random.default_rng(0)) is small
    molecule = structure_of(Atoms("Si2", [(0, 0, 0), (0, 0, 2.4)]))
    assert tiled(molecule, 2, 64, np.random.default_rng(0)) is molecule


def test_vacancies() -> None:
    found = with_vacancies(structure_of(crystal()), 0.2, np.random.default_rng(0))
    assert len(found.numbers) == 13
    assert (crystal().positions[found.origin] == found.positions).all()
    assert (crystal().numbers[found.origin] == found.numbers).all()
    pair = structure_of(bulk("Si", "diamond", 5.43))
    assert with_vacancies(pair, 0.9, np.random.default_rng(0)) is pair


def test_radius_and_cap_of_the_graph() -> None:
    config = dataclasses.replace(PLAIN, draw=("graph",), radius=(3.0, 4.0), neighbours=(6, 6))
    graph, *_ = seen(config)
    assert float(graph.edge_vector.norm(dim=1).max()) < 4.0
    # Four at 2.35 Å, twelve at 3.84 Å: a cap of six keeps the ties of the second shell, or the radius ends before it.
    counts = torch.bincount(graph.edge_index[1], minlength=16)
    assert set(counts.tolist()) <= {4, 16}
    wide, *_ = seen(dataclasses.replace(config, radius=(9.0, 9.0), neighbours=(1000, 1000)))
    np.testing.assert_allclose(np.sort(wide.edge_vector.norm(dim=1).numpy()), distances(crystal(), 4.5), atol=1e-7)


def test_edges_are_left_out() -> None:
    full, cut = (seen(dataclasses.replace(PLAIN, draw=d, edges=0.25))[0] for d in ((), ("edges",)))
    assert cut.edge_index.shape[1] / full.edge_index.shape[1] == pytest.approx(0.75, abs=0.05)
    assert cut.edge_vector.shape[0] == cut.edge_index.shape[1]


def test_at_most_three_augmentations_with_the_noise() -> None:
    config = ViewsConfig(draw=("mask", "cell", "graph", "tile", "vacancies", "edges"))
    rng = np.random.default_rng(0)
    drawn = [draw(config, rng) for _ in range(500)]
    assert {len(d) for d in drawn} == {0, 1, 2}
    assert {name for d in drawn for name in d} == set(config.draw)
    assert draw(dataclasses.replace(config, chance=0.0), rng) == set()
    assert len(draw(dataclasses.replace(config, chance=1.0, most=9), rng)) == 6


def test_noise_that_puts_atoms_on_top_of_each_other_shrinks() -> None:
    dense = Atoms("Si2", [(0, 0, 0), (0.3, 0, 0)], cell=[2, 2, 2], pbc=True)
    for seed in range(20):
        graph, _, sigma = seen(dataclasses.replace(PLAIN, noise=(0.3, 0.3)), dense, seed)
        assert float(graph.edge_vector.norm(dim=1).min()) >= 0.1
        assert sigma <= 0.3
    with pytest.raises(UserError, match="apart"):
        seen(PLAIN, Atoms("Si2", [(0, 0, 0), (0.01, 0, 0)]))


def test_pairs_are_the_same_atoms() -> None:
    config = dataclasses.replace(PLAIN, draw=("tile", "vacancies"), most=3)
    chosen = [(crystal(), (5, k)) for k in range(3)]
    views = two_views(chosen, config, 4.5, key=1)
    n_first = int((views.graph.batch < 3).sum())
    assert (views.pairs[0] < n_first).all()
    assert (views.pairs[1] >= n_first).all()
    assert torch.equal(views.graph.batch[views.pairs[0]] + 3, views.graph.batch[views.pairs[1]])
    assert torch.equal(views.numbers[views.pairs[0]], views.numbers[views.pairs[1]])
    assert [int((views.graph.batch == k).sum()) for k in range(6)] == [30] * 6  # tiled to 32, less a twentieth
    assert 3 * 12 <= views.pairs.shape[1] < 3 * 16


def equal(one: Views, two: Views) -> bool:
    same = all(torch.equal(a, b) for a, b in zip(one.graph, two.graph, strict=True))
    return same and all(torch.equal(one[k], two[k]) for k in range(1, 5)) and one.key == two.key


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Pretraining:
    path = labels(tmp_path_factory.mktemp("views"))
    return Pretraining(recipe(path, objective={"denoise": {}}, views={"radius": [3.0, 3.6]}))


def test_any_number_of_workers_makes_the_same_views(task: Pretraining) -> None:
    """Two processes that take turns, as those of the loop do."""
    with multiprocessing.get_context("fork").Pool(2) as pool:
        helped = pool.starmap(task.batch, [(step, 0, 1) for step in range(2, 6)])
    alone = list(task.batches(range(2, 6)))
    assert all(equal(a, b) for a, b in zip(alone, helped, strict=True))
    assert not equal(alone[0], alone[1])


def test_ranks_share_the_very_views_of_one(task: Pretraining) -> None:
    whole = task.batch(3, 0, 1)
    shares = [task.batch(3, rank, 2) for rank in range(2)]
    noise = [{tuple(row) for row in v.noise.tolist()} for v in (whole, *shares)]
    assert noise[1] | noise[2] == noise[0]
    assert not noise[1] & noise[2]
    assert whole.key == shares[0].key == shares[1].key


def test_each_pass_has_views_of_its_own(task: Pretraining) -> None:
    passes = [task.batch(step, 0, 1) for step in (0, 8)]  # 8 structures, 5 in a batch: step 8 starts the sixth pass
    assert not {tuple(r) for r in passes[0].noise.tolist()} & {tuple(r) for r in passes[1].noise.tolist()}


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ({"noise": [0.3, 0.1]}, r"views.noise: expected two numbers, the lower one first"),
        ({"chance": 1.5}, r"views.chance: expected a number in 0 … 1"),
        ({"most": 0}, r"views.most: expected 1 or more"),
        ({"strategies": []}, r"name at least one of atom, element, region"),
        ({"neighbours": [0, 5]}, r"neighbours at least 1"),
    ],
)
def test_views_that_make_no_sense(views: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        recipe(labels(tmp_path, trajectories=1, frames=1), views=views).views.check("views")
