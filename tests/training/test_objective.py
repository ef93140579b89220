"""Loss and figures of merit against plain numpy, structure by structure."""

from __future__ import annotations

import dataclasses
from typing import cast

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from numpy.typing import NDArray

from tests.tiny import TINY, tiny_model
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.training.objective import Prediction, Tally, losses, predict
from triforces_deploy.training.recipe import Form, LossConfig
from triforces_deploy.training.structures import Sample, join

FORMS: tuple[Form, ...] = ("mae", "mse", "huber", "l2")
DELTA = 0.3


def crystal(n: int) -> Atoms:
    return bulk("Si", "diamond", 5.43).repeat((1, 1, n))


STRUCTURES = [crystal(1), crystal(4), Atoms("SiGe", [(0, 0, 0), (0, 0, 2.4)])]
SIZES = [2, 8, 2]


def batch(known: tuple[bool, ...] = (True, True, False)) -> tuple[Prediction, Sample]:
    """Random labels and predictions of structures of unequal size, some without stress."""
    rng = np.random.default_rng(0)
    samples = []
    for atoms, has_stress in zip(STRUCTURES, known, strict=True):
        n = len(atoms)
        stress = rng.normal(size=(1, 3, 3)) if has_stress else np.full((1, 3, 3), np.nan)
        numbers = (torch.from_numpy(rng.normal(size=shape)) for shape in ((1,), (n, 3)))
        samples.append(Sample(graph_from_atoms(atoms, 3.0), *numbers, torch.from_numpy(stress)))
    sample = join(samples)
    prediction = Prediction(*(torch.from_numpy(rng.normal(size=t.shape)) for t in sample[1:4]))
    return prediction, sample


def penalty(error: NDArray[np.float64], form: Form) -> float:
    """Of the components of one thing: an atom's force, a structure's stress."""
    e = np.abs(error.ravel())
    if form == "l2":
        return float(np.linalg.norm(e))
    if form == "mae":
        return float(e.mean())
    if form == "mse":
        return float((e**2).mean())
    return float(np.where(e < DELTA, e**2 / 2, DELTA * (e - DELTA / 2)).mean())


@pytest.mark.parametrize("form", FORMS)
def test_each_structure_counts_the_same(form: Form) -> None:
    prediction, sample = batch()
    config = LossConfig(2.0, 3.0, 5.0, form, form, form, DELTA)
    found = losses(prediction, sample, config)
    start = np.cumsum([0, *SIZES])
    error = [(p - s).numpy() for p, s in zip(prediction, sample[1:4], strict=True)]
    energy = np.mean([penalty(error[0][k] / n, form) for k, n in enumerate(SIZES)])
    forces = np.mean([np.mean([penalty(f, form) for f in error[1][start[k] : start[k + 1]]]) for k in range(3)])
    stress = np.mean([penalty(error[2][k], form) for k in range(2)])  # the third has none
    assert [float(x) for x in found] == pytest.approx([2 * energy + 3 * forces + 5 * stress, energy, forces, stress], rel=1e-12)


def test_a_perfect_prediction_costs_nothing() -> None:
    _, sample = batch((True, True, True))
    for form in FORMS:
        config = LossConfig(energy_form=form, forces_form=form, stress_form=form)
        assert float(losses(Prediction(*sample[1:4]), sample, config).total) < 1e-6


def test_structures_without_stress_leave_no_nan_in_the_gradient() -> None:
    """Not even where no structure has one, nor for a molecule, which has no volume."""
    model = tiny_model(dataclasses.replace(TINY, zbl=False)).requires_grad_(True)
    model.train()
    for known in ((True, False, False), (False, False, False)):
        _, sample = batch(known)
        found = losses(predict(model, sample.graph, create_graph=True), sample, LossConfig())
        model.zero_grad()
        found.total.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert bool(found.total.isfinite())
        assert all(bool(g.isfinite().all()) for g in gradients)
        assert any(float(g.abs().max()) > 0 for g in gradients)
        assert (float(found.stress.detach()) == 0) == (not any(known))


def test_the_weights_follow_all_three_labels() -> None:
    """The gradient of each part alone, against a finite difference along a random direction in weight space."""
    model = tiny_model().requires_grad_(True)
    _, sample = batch((True, True, False))
    parameters = [p for p in model.parameters() if p.requires_grad]
    torch.manual_seed(1)
    direction = [torch.randn_like(p) for p in parameters]

    def shift(amount: float) -> None:
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p += amount * d

    h = 1e-6
    for config in (LossConfig(1, 0, 0), LossConfig(0, 1, 0), LossConfig(0, 0, 1)):

        def value(config: LossConfig = config) -> torch.Tensor:
            return losses(predict(model, sample.graph, create_graph=True), sample, config).total

        gradient = torch.autograd.grad(value(), parameters, allow_unused=True)
        ours = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True) if g is not None)
        shift(h)
        up = float(value().detach())
        shift(-2 * h)
        down = float(value().detach())
        shift(h)
        assert ours == pytest.approx((up - down) / (2 * h), rel=1e-4)
        assert abs(ours) > 1e-6


def test_figures_by_hand() -> None:
    """Two batches added up, against numpy over everything at once."""
    prediction, sample = batch()
    again = Prediction(*(2 * t for t in prediction))
    tally = Tally()
    tally.add(prediction, sample)
    tally.add(again, sample)
    m = tally.metrics()
    sizes = np.array(SIZES * 2)
    e, f, s = (
        np.concatenate([(p - t).numpy() for p in (p1, p2)]) for p1, p2, t in zip(prediction, again, sample[1:4], strict=True)
    )
    e, s = 1000 * e / sizes, 1000 * s[np.isfinite(s).all(axis=(1, 2))]
    f, label = 1000 * f, 1000 * sample.forces.numpy()
    assert (m.structures, m.atoms) == (6, 24)

    def rms(x: NDArray[np.float64]) -> float:
        return float(np.sqrt((x**2).mean()))

    ours = [m.energy_mae, m.energy_rmse, m.forces_mae, m.forces_rmse, m.forces_rms, m.forces_percent]
    truth = [np.abs(e).mean(), rms(e), np.abs(f).mean(), rms(f), rms(label), 100 * rms(f) / rms(label)]
    assert ours == pytest.approx(truth, rel=1e-12)
    assert len(s) == 4
    assert [m.stress_mae, m.stress_rmse] == pytest.approx([np.abs(s).mean(), rms(s)], rel=1e-12)


def test_figures_without_labels() -> None:
    prediction, sample = batch((False, False, False))
    tally = Tally()
    tally.add(prediction, sample._replace(forces=0 * sample.forces))
    m = tally.metrics()
    assert (m.stress_mae, m.stress_rmse) == (None, None)
    assert np.isnan(m.forces_percent)
    assert cast(float, m.forces_rmse) > 0
