"""Evaluation: the right structures, the right figures, and nothing claimed of data that changed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import read, write
from rich.console import Console

from tests.tiny import tiny_model
from tests.training.small import labels, recipe, structures
from triforces_deploy import checkpoint
from triforces_deploy.config import as_dict
from triforces_deploy.derivatives import energy
from triforces_deploy.errors import UserError
from triforces_deploy.files import sha256_of
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.training.data import load
from triforces_deploy.training.evaluate import evaluate, metrics_table


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint with random weights and the provenance of a run; and its data."""
    path = labels(tmp_path)
    plan = recipe(path)
    model = tiny_model()
    provenance = {"files": {str(path): sha256_of(path)}, "split": as_dict(load(plan.data, plan.model).split)}
    checkpoint.save(tmp_path / "best.ckpt", model, provenance)
    return tmp_path / "best.ckpt", path


def test_held_out_trajectories_are_the_default_and_figures_are_numpys(trained: tuple[Path, Path], tmp_path: Path) -> None:
    path, data = trained
    found = evaluate(path, out=tmp_path / "values.npz", batch_size=3)
    held_out = set(checkpoint.load(path)[1]["split"]["test"])
    frames = [a for a in read(data, ":") if a.info["trajectory"] in held_out]
    assert 0 < len(frames) < 24
    assert (found.part, found.model.structures, found.model.atoms) == ("test", len(frames), 8 * len(frames))
    model = tiny_model()
    graphs = [graph_from_atoms(a, model.config.cutoff) for a in frames]
    errors = [
        float(energy(model(g), g)) / len(a) - a.get_potential_energy() / len(a) for a, g in zip(frames, graphs, strict=True)
    ]
    assert found.model.energy_mae == pytest.approx(1000 * np.abs(errors).mean(), rel=1e-9)
    rms = np.sqrt(np.mean(np.concatenate([a.get_forces() for a in frames]) ** 2))
    assert found.zero.forces_rmse == found.zero.forces_rms == pytest.approx(1000 * rms, rel=1e-9)
    empty = [sum({14: -4.6, 32: -3.9}[z] for z in a.numbers) / len(a) - a.get_potential_energy() / len(a) for a in frames]
    assert found.zero.energy_rmse == pytest.approx(1000 * np.sqrt(np.mean(np.square(empty))), rel=1e-9)
    values = np.load(tmp_path / "values.npz")
    np.testing.assert_allclose(values["forces"][..., 0], np.concatenate([a.get_forces() for a in frames]))
    np.testing.assert_allclose(values["energy"][:, 1] - values["energy"][:, 0], errors, atol=1e-9)
    np.testing.assert_allclose(values["stress"][..., 0], [a.get_stress(voigt=False) for a in frames])
    assert values["frames"][0].startswith(f"{data}@")
    assert values["n_atoms"].tolist() == [8] * len(frames)


def test_every_figure_is_that_of_the_values(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """Whatever the size of the batches; and nothing predicted means stress and forces of zero."""
    path, data = trained
    found = evaluate(path, data, tmp_path / "values.npz", batch_size=5)
    values = np.load(tmp_path / "values.npz")
    for name, figures in (
        ("energy", (found.model.energy_mae, found.model.energy_rmse)),
        ("forces", (found.model.forces_mae, found.model.forces_rmse)),
        ("stress", (found.model.stress_mae, found.model.stress_rmse)),
    ):
        error = 1000 * (values[name][..., 1] - values[name][..., 0])
        assert figures == pytest.approx((np.abs(error).mean(), np.sqrt((error**2).mean())), rel=1e-9), name
    labels_alone = 1000 * values["stress"][..., 0]
    assert found.zero.stress_rmse == pytest.approx(np.sqrt((labels_alone**2).mean()), rel=1e-9)
    assert found.zero.forces_percent == pytest.approx(100)
    assert found.model.forces_percent == pytest.approx(100 * found.model.forces_rmse / found.zero.forces_rmse, rel=1e-9)
    other = evaluate(path, data, batch_size=24)
    assert other.model.forces_rmse == pytest.approx(found.model.forces_rmse, rel=1e-12)


def test_a_folder_that_is_not_there(trained: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="choose a folder that exists"):
        evaluate(trained[0], out=tmp_path / "no" / "values.npz")


def test_the_parts_make_up_the_whole(trained: tuple[Path, Path]) -> None:
    path, data = trained
    sizes = [evaluate(path, part=part).model.structures for part in ("train", "validation", "test")]
    assert sum(sizes) == evaluate(path, part="all").model.structures == evaluate(path, data).model.structures == 24


def test_data_that_changed_or_moved_since_training(trained: tuple[Path, Path]) -> None:
    path, data = trained
    write(data, structures(seed=9), format="extxyz")
    with pytest.raises(UserError, match="has changed since"):
        evaluate(path)
    data.unlink()
    with pytest.raises(UserError, match=r"does not exist; expected what .* was trained from"):
        evaluate(path)


def test_a_checkpoint_without_history(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not say what it was trained on"):
        evaluate(tiny_checkpoint)
    data = labels(tmp_path)
    assert evaluate(tiny_checkpoint, data).model.structures == 24
    with pytest.raises(UserError, match="carries no split"):
        evaluate(tiny_checkpoint, data, part="test")


def test_a_part_that_is_not_in_the_file(trained: tuple[Path, Path], tmp_path: Path) -> None:
    path, data = trained
    kept = set(checkpoint.load(path)[1]["split"]["train"])
    write(tmp_path / "train.extxyz", [a for a in read(data, ":") if a.info["trajectory"] in kept], format="extxyz")
    with pytest.raises(UserError, match="no structure belongs to the test part"):
        evaluate(path, tmp_path / "train.extxyz", part="test")


def test_the_table_shows_both(trained: tuple[Path, Path]) -> None:
    found = evaluate(trained[0])
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(metrics_table({"model": found.model, "predicting zero": found.zero}, "errors"))
    text = console.export_text()
    assert f"{found.model.forces_rmse:.4g}" in text
    assert "100.0" in text


def test_the_precision_of_the_file_is_the_one_that_runs(trained: tuple[Path, Path], tmp_path: Path) -> None:
    path, _ = trained
    model, provenance = checkpoint.load(path)
    model.set_network_dtype(torch.float32)
    checkpoint.save(tmp_path / "single.ckpt", model, provenance)
    one, other = evaluate(path).model.forces_rmse, evaluate(tmp_path / "single.ckpt").model.forces_rmse
    assert one != other
    assert one == pytest.approx(other, rel=1e-4)
