"""The road of pretraining: what a run leaves behind, that it can be stopped, and that export does not take it for a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.io import write

from tests.training.small import column, equal, log, recipe, train, weights
from triforces_deploy import checkpoint
from triforces_deploy.calculator import TriForcesCalculator
from triforces_deploy.errors import UserError
from triforces_deploy.export.exporting import ExportOptions, export
from triforces_deploy.training.evaluate import evaluate
from triforces_deploy.training.pretraining import Pretraining
from triforces_deploy.training.uncertainty import add_uncertainty

TERMS: dict[str, Any] = {
    "denoise": {"head": "vector"}, "masked": {"weight": 10, "hidden": [16]}, "lejepa": {"slices": 32, "hidden": 16, "width": 8},
}  # fmt: skip
VIEWS: dict[str, Any] = {"noise": [0.1, 0.1], "radius": [3.0, 3.6]}


def unlabelled(folder: Path) -> Path:
    """Rattled zinc-blende and diamond: which element an atom is can be told from its neighbours and the lattice constant."""
    rng = np.random.default_rng(0)
    found: list[Atoms] = []
    for k in range(8):
        for _ in range(3):
            atoms = bulk("Si", "diamond", 5.43 + 0.3 * (k % 2), cubic=True)
            atoms.numbers[:] = 32 if k % 2 else 14
            atoms.positions += rng.normal(0, 0.01, (8, 3))
            atoms.info["trajectory"] = f"run {k}"
            found.append(atoms)
    write(folder / "structures.extxyz", found, format="extxyz")
    return folder / "structures.extxyz"


def plan(path: Path, **sections: Any) -> Any:
    return recipe(path, objective=TERMS, views=VIEWS, **{"optimiser": {"lr": 1e-2}, **sections})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unlabelled(tmp_path_factory.mktemp("structures"))


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    assert train(plan(data), folder).status == "finished"
    return folder


def test_it_learns_from_structures_alone(straight: Path) -> None:
    denoise, masked = column(straight, "val_denoise"), column(straight, "val_masked")
    # 3 σ² (1 − 1/N) is the score of knowing nothing; ln 2 that of guessing one of two elements.
    assert denoise[-1] < 3 * 0.01 * 7 / 8
    assert masked[-1] < 0.6 * np.log(2)
    total = 10 * np.array(denoise) + 10 * np.array(masked) + 0.1 * np.array(column(straight, "val_lejepa"))
    np.testing.assert_allclose(column(straight, "val_score"), total, rtol=1e-6)


def test_the_checkpoint_is_a_model_that_says_what_it_is(straight: Path, data: Path) -> None:
    model, provenance = checkpoint.load(straight / "best.ckpt")
    assert provenance["pretrained"] == ["denoise", "lejepa", "masked"]
    assert provenance["elements"] == ["Si", "Ge"]
    assert sum(provenance["frames"].values()) == 24
    assert set(model.state_dict()) == set(Pretraining(plan(data)).new_learner().model.state_dict())


def test_a_stopped_run_goes_on_to_the_same_end(data: Path, straight: Path, tmp_path: Path) -> None:
    result = train(plan(data, trainer={"max_minutes": 1e-9}), tmp_path)
    assert result.status == "out of time"
    assert train(plan(data), tmp_path).status == "finished"
    assert equal(weights(tmp_path / "last.ckpt"), weights(straight / "last.ckpt"))
    assert log(tmp_path)[-1] == log(straight)[-1]


def test_nobody_takes_energies_of_a_model_that_never_saw_an_energy(straight: Path, tmp_path: Path) -> None:
    for use in (evaluate, add_uncertainty, TriForcesCalculator.of_checkpoint):
        with pytest.raises(UserError, match=r"pretrained without labels.*tfdeploy train finetune"):
            use(straight / "best.ckpt")  # type: ignore[operator]
    with pytest.raises(UserError, match=r"pretrained without labels.*tfdeploy train finetune"):
        export(straight / "best.ckpt", tmp_path / "model.pt", ExportOptions(backends=()))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({}, "names no term; expected at least one of denoise, masked, lejepa"),
        ({"denoise": {"weight": 0}}, "denoise.weight: expected a number above 0"),
        ({"lejepa": {"sigreg": 2.0}}, r"lejepa.sigreg: expected a number in 0 … 1"),
        ({"lejepa": {"graph": 0.0, "node": 0.0}}, "not both 0"),
    ],
)
def test_objectives_that_make_no_sense(objective: dict[str, Any], message: str, data: Path) -> None:
    found = recipe(data, objective=objective).objective
    assert found is not None
    with pytest.raises(UserError, match=message):
        found.check("recipe.yaml.objective")


def test_structures_that_cannot_be_views(tmp_path: Path) -> None:
    clash = Atoms("Si2", [(0, 0, 0), (0.01, 0, 0)], cell=[5, 5, 5], pbc=True)
    foreign = bulk("Cu", cubic=True)
    for atoms, message in ((clash, r"@0: atoms 0 and 1 are 0.01 Å apart"), (foreign, r"@0 holds Cu; add it to model.elements")):
        write(tmp_path / "bad.extxyz", atoms, format="extxyz")
        with pytest.raises(UserError, match=message):
            Pretraining(plan(tmp_path / "bad.extxyz"))
    with pytest.raises(UserError, match="edges differ from view to view"):
        Pretraining(plan(unlabelled(tmp_path), trainer={"batch_by": "edges"}))


def test_batches_by_atoms(data: Path) -> None:
    task = Pretraining(plan(data, trainer={"batch_by": "atoms", "batch_size": 20}))
    batch = next(task.batches(range(1)))
    assert batch.graph.composition.shape[0] == 4  # two structures of 8 atoms, two views of each
    assert torch.equal(batch.graph.batch.bincount(), torch.tensor([8, 8, 8, 8]))
