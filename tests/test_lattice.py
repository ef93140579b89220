"""The lattice encoding: its nine numbers against ASE's cell parameters, and what they do to energies."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.cell import Cell

from tests.tiny import TINY, tiny_model
from triforces_deploy.graph import collate
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.streams.lattice import LatticeEncoding, lattice_features

assert TINY.structure is not None
WITH_LATTICE = dataclasses.replace(TINY, structure=dataclasses.replace(TINY.structure, lattice=True))


def features(cell: Cell, n_atoms: int) -> np.ndarray:
    return lattice_features(torch.from_numpy(cell.array)[None], torch.tensor([float(n_atoms)]).double())[0].numpy()


def test_nine_features_of_a_triclinic_cell() -> None:
    cell = Cell.fromcellpar([4.1, 5.2, 7.3, 71, 83, 104])
    a, b, c, *angles = cell.cellpar()
    v = cell.volume
    expected = [*(np.array([a, b, c]) / v ** (1 / 3)), *(np.radians(angles) / math.pi)]
    expected += [math.log(v), math.log(v / 6), v / (a * b * c)]
    np.testing.assert_allclose(features(cell, 6), expected, rtol=1e-12)
    left_handed = Cell(cell.array[[1, 0, 2]])
    assert features(left_handed, 6)[6] == pytest.approx(math.log(v))


def test_which_features_a_supercell_keeps() -> None:
    cell = bulk("Si").cell
    small, large, flat = features(cell, 2), features(Cell(2 * cell.array), 16), features(Cell(cell.array * [[3], [1], [1]]), 6)
    changed = np.abs(large - small) > 1e-12
    assert changed.tolist() == [False] * 6 + [True, False, False]
    assert (np.abs(flat - small) > 1e-12).tolist() == [True] * 3 + [False] * 3 + [True, False, False]


def test_the_encoding_reaches_the_energy_and_is_off_without_a_cell() -> None:
    model = tiny_model(WITH_LATTICE)
    atoms = bulk("Si", "diamond", 5.43, cubic=True)
    graph = graph_from_atoms(atoms, TINY.cutoff)
    assert abs(float(model(graph).sum() - model(graph._replace(cell=graph.cell * 1.1)).sum())) > 1e-3
    free = collate([graph._replace(cell=torch.zeros(1, 3, 3).double()), graph])
    encoding = model.structure.lattice  # type: ignore[union-attr]
    assert isinstance(encoding, LatticeEncoding)
    encoded = encoding(free.cell, free.composition.sum(1))
    assert encoded[0].abs().max() == 0
    assert encoded[1].abs().max() > 1e-3
    assert torch.isfinite(model(graph_from_atoms(Atoms("Si2", [(0, 0, 0), (2.2, 0, 0)]), TINY.cutoff))).all()


def test_rotation_of_everything_leaves_the_features() -> None:
    cell = Cell.fromcellpar([4.1, 5.2, 7.3, 71, 83, 104])
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    np.testing.assert_allclose(features(Cell(cell.array @ turn), 6), features(cell, 6), rtol=1e-12)
