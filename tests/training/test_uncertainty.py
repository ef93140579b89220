"""Uncertainty of atoms' energies against Bayesian linear regression in other words, and what it must obey."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.io import read
from numpy.typing import NDArray

from tests.tiny import TINY, tiny_model
from tests.training.small import MODEL, frames_of, labels, recipe, train
from triforces_deploy import artifact, checkpoint
from triforces_deploy.calculator import TriForcesCalculator
from triforces_deploy.errors import UserError
from triforces_deploy.export.exporting import ExportOptions, export
from triforces_deploy.graph import collate
from triforces_deploy.model import Model
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.nn import blocks
from triforces_deploy.training.uncertainty import STRENGTHS, Uncertainty, add_uncertainty, calibrated, with_spread

Array = NDArray[np.float64]


@pytest.fixture(scope="module")
def added(data: Path, straight: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Uncertainty, Path]:
    """Of a model that was trained."""
    out = tmp_path_factory.mktemp("uncertain") / "told.ckpt"
    return add_uncertainty(straight / "best.ckpt", out=out), out


@pytest.fixture(scope="module")
def told(added: tuple[Uncertainty, Path]) -> Path:
    """Its export."""
    path = added[1].with_suffix(".pt")
    export(added[1], path, ExportOptions(backends=()))
    return path


def features(model: Model, atoms: list[Atoms]) -> list[Array]:
    """What the last linear layer is given, caught on the way, and a one for its bias; (N, F) of each structure."""
    caught: list[torch.Tensor] = []
    hook = model.head.layers[-1].register_forward_pre_hook(lambda _, given: caught.append(given[0]))
    for one in atoms:
        model(graph_from_atoms(one, model.config.cutoff))
    hook.remove()
    return [np.hstack([t.numpy(), np.ones((len(t), 1))]) for t in caught]


def sigma(model: Model, atoms: Atoms) -> Array:
    return model.run(graph_from_atoms(atoms, model.config.cutoff), extras=("uncertainty",))[2].numpy()


def crystal(seed: int = 0, shake: float = 0.1, edge: float = 5.43) -> Atoms:
    atoms = bulk("Si", "diamond", edge, cubic=True)
    atoms.symbols[[0, 3]] = "Ge"
    atoms.rattle(shake, seed=seed)
    return atoms


def test_it_is_the_posterior_of_bayesian_linear_regression() -> None:
    """The same variances from the kernel of the structures, which never forms a covariance of weights."""
    model = tiny_model()
    rng = np.random.default_rng(3)
    many = [crystal(k, rng.uniform(0.02, 0.3)) * (1 + k % 2, 1, 1) for k in range(40)]
    phi = features(model, many)
    sums, n_atoms = np.array([f.sum(0) for f in phi]), np.array([len(a) for a in many])
    errors = rng.normal(size=len(many)) * 0.1 * np.sqrt(n_atoms)
    rows, held_out = slice(0, 30), slice(30, 40)
    spread, strength = calibrated(*(torch.from_numpy(a) for a in (sums[rows], n_atoms[rows], sums[held_out], errors[held_out])))
    assert strength in STRENGTHS

    x = sums[rows] / np.sqrt(n_atoms[rows])[:, None]
    prior = 1 / (strength * np.square(x).sum() / x.shape[1])  # variance of each weight, in units of that of the noise

    def variance(at: Array) -> Array:
        kernel = prior * x @ x.T + np.eye(len(x))
        cross = prior * at @ x.T
        return prior * np.square(at).sum(1) - np.einsum("as,st,at->a", cross, np.linalg.inv(kernel), cross)

    noise = (np.square(errors[held_out]) / variance(sums[held_out])).mean()
    atoms = crystal(99, 0.4)
    (at,) = features(model, [atoms])
    expected = np.sqrt(noise * variance(at))
    np.testing.assert_allclose(sigma(with_spread(model, spread), atoms), expected, rtol=1e-5)


def test_the_strength_is_the_likeliest() -> None:
    """Against the likelihood of every strength, from the dense covariance."""
    rng = np.random.default_rng(5)
    rows, held_out = rng.normal(size=(25, 12)), rng.normal(size=(12, 12))
    errors, n_atoms = rng.normal(size=12) * np.linalg.norm(held_out, axis=1), np.full(25, 8.0)
    _, strength = calibrated(*(torch.from_numpy(a) for a in (rows, n_atoms, held_out, errors)))
    matrix = rows.T @ rows / 8
    found = {}
    for s in STRENGTHS:
        v = np.diag(held_out @ np.linalg.inv(matrix + s * np.trace(matrix) / 12 * np.eye(12)) @ held_out.T)
        scale = np.mean(errors**2 / v)
        found[s] = float(np.sum(-0.5 * np.log(2 * np.pi * scale * v) - 0.5 * errors**2 / (scale * v)))
    assert strength == max(found, key=lambda s: found[s])
    assert len({round(value, 6) for value in found.values()}) > 3


def test_a_calibrated_model_says_how_wrong_it_is(added: tuple[Uncertainty, Path], straight: Path) -> None:
    result, out = added
    assert (result.structures, result.calibrated_on) == (8, 8)
    assert 0.2 < result.energy_std / result.energy_rmse < 5
    assert result.within_one <= result.within_two
    old, new = checkpoint.load(straight / "best.ckpt")[0], checkpoint.load(out)[0]
    assert {k: v for k, v in new.state_dict().items() if k != "spread"}.keys() == old.state_dict().keys()
    atoms = crystal()
    assert torch.equal(new(graph_from_atoms(atoms, 3.6)), old(graph_from_atoms(atoms, 3.6)))


def test_energies_and_forces_know_nothing_of_it(told: Path, straight: Path, tmp_path: Path) -> None:
    export(straight / "best.ckpt", tmp_path / "silent.pt", ExportOptions(backends=()))
    graph = graph_from_atoms(crystal(), 3.6)
    one, other = artifact.load(told), artifact.load(tmp_path / "silent.pt")
    new, old = one.evaluate(graph), other.evaluate(graph)
    assert torch.equal(new.energies, old.energies)
    assert torch.equal(new.edge_forces, old.edge_forces)
    assert (one.has_uncertainty, other.has_uncertainty) == (True, False)
    assert new.uncertainty is not None
    assert old.uncertainty is None
    assert any(line.startswith("uncertainty: of each atom's energy") for line in one.facts.policies)
    assert "uncertainty" not in one.embeddings(graph)


def test_copies_far_away_and_other_orders_change_nothing(told: Path) -> None:
    potential = artifact.load(told)

    def of(atoms: Atoms) -> Array:
        found = potential.evaluate(graph_from_atoms(atoms, 3.6)).uncertainty
        assert found is not None
        return found.numpy()

    atoms = crystal()
    once = of(atoms)
    np.testing.assert_allclose(of(atoms.repeat((2, 1, 2))), np.tile(once, 4), rtol=1e-9)
    order = np.random.default_rng(0).permutation(len(atoms))
    np.testing.assert_allclose(of(atoms[order]), once[order], rtol=1e-9)
    molecule = crystal()[:5]
    molecule.pbc = False
    far = molecule.copy()
    far.positions += 50.0
    alone = of(molecule)
    np.testing.assert_allclose(of(molecule + far), np.tile(alone, 2), rtol=1e-9)
    assert of(Atoms()).shape == (0,)


def test_it_grows_where_training_has_never_been(told: Path) -> None:
    """Against structures like those of training: shaken four and six times as much, and compressed by a sixth."""
    potential = artifact.load(told)

    def typical(atoms: list[Atoms]) -> float:
        found = [potential.evaluate(graph_from_atoms(a, 3.6)).uncertainty for a in atoms]
        return float(torch.cat([t for t in found if t is not None]).median())

    inside = typical([crystal(k, 0.08) for k in range(8)])
    for strange in (
        [crystal(k, 0.3) for k in range(8)],
        [crystal(k, 0.5) for k in range(8)],
        [crystal(k, 0.08, 4.6) for k in range(8)],
    ):
        assert typical(strange) > 1.4 * inside


def test_the_calculator_passes_it_on(told: Path) -> None:
    atoms = crystal()
    atoms.calc = TriForcesCalculator(told)
    atoms.get_potential_energy()
    found = artifact.load(told).evaluate(graph_from_atoms(atoms, 3.6)).uncertainty
    assert found is not None
    np.testing.assert_allclose(atoms.calc.results["energies_std"], found.numpy(), rtol=1e-9)


def test_ghosts_have_none_and_blocks_change_nothing() -> None:
    model = with_spread(tiny_model(), torch.eye(tiny_model().head.n_features, dtype=torch.float64))
    graph = collate([graph_from_atoms(crystal(k), TINY.cutoff) for k in range(4)])
    extras = model.extras()
    expected = model.run(graph, extras)
    with blocks.using(1 << 20):
        for new, old in zip(model.run(graph, extras), expected, strict=True):
            torch.testing.assert_close(new, old, rtol=1e-11, atol=1e-11)
    owned = graph.owned.clone()
    owned[5:9] = False
    found = model.run(graph._replace(owned=owned), extras)[-1]
    assert torch.equal(found[5:9], torch.zeros(4, dtype=torch.float64))
    assert torch.equal(found[9:], expected[-1][9:])


def test_data_of_ones_own(straight: Path, tmp_path: Path) -> None:
    """Other structures than those of training; a fifth of their trajectories calibrates."""
    own = labels(tmp_path, trajectories=10, frames=3, seed=7)
    result = add_uncertainty(straight / "best.ckpt", [own], tmp_path / "x.ckpt")
    assert (result.structures, result.calibrated_on) == (24, 6)


def test_what_cannot_be_done_says_why(straight: Path, data: Path, tmp_path: Path) -> None:
    few = labels(tmp_path, trajectories=3, frames=1)
    with pytest.raises(UserError, match="1 structures to calibrate on, at least 4 are needed"):
        add_uncertainty(straight / "best.ckpt", [few], tmp_path / "x.ckpt")
    checkpoint.save(tmp_path / "mean.ckpt", tiny_model(dataclasses.replace(TINY, readout="mean", zbl=False)), {})
    with pytest.raises(UserError, match="has readout 'mean'"):
        add_uncertainty(tmp_path / "mean.ckpt", [few])
    checkpoint.save(tmp_path / "bare.ckpt", tiny_model(), {})
    with pytest.raises(UserError, match="does not say what it was trained on"):
        add_uncertainty(tmp_path / "bare.ckpt")
    plan = recipe(data, model={**MODEL, "uncertainty": True})
    with pytest.raises(UserError, match="made by `tfdeploy uncertainty`"):
        train(plan, tmp_path / "run")
    assert not (tmp_path / "x.ckpt").exists()


def test_training_tells_its_shortest_distances(data: Path, straight: Path) -> None:
    """By ASE's own distances."""
    split = checkpoint.load(straight / "best.ckpt")[1]
    shortest: dict[str, float] = {}
    for frame, atoms in zip(frames_of(data), read(data, ":"), strict=True):
        if frame.trajectory not in split["split"]["train"]:
            continue
        distances = atoms.get_all_distances(mic=True)
        for i in range(len(atoms)):
            for j in range(i):
                pair = "-".join(atoms.symbols[k] for k in sorted((i, j), key=lambda k: atoms.numbers[k]))
                shortest[pair] = min(shortest.get(pair, 9.0), float(distances[i, j]))
    assert split["shortest_distances"] == pytest.approx(shortest, rel=1e-12)
    assert len(shortest) == 3
