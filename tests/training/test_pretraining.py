"""The road of pretraining: what a run leaves behind, that it can be stopped, and that export does not take it for a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.neighborlist import neighbor_list

from tests.training.small import column, equal, log, recipe, train, weights
from triforces_deploy import checkpoint
from triforces_deploy.calculator import TriForcesCalculator
from triforces_deploy.errors import UserError
from triforces_deploy.export.exporting import ExportOptions, export
from triforces_deploy.training.converting import Limits, convert
from triforces_deploy.training.evaluate import evaluate
from triforces_deploy.training.objectives.base import Views
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
    for atoms, message in ((clash, r"@0: atoms 0 and 1 are 0.01 Å apart"), (foreign, r"@0 holds Cu; model.elements names")):
        write(tmp_path / "bad.extxyz", atoms, format="extxyz")
        with pytest.raises(UserError, match=message):
            Pretraining(plan(tmp_path / "bad.extxyz"))


def test_batches_by_atoms(data: Path) -> None:
    task = Pretraining(plan(data, trainer={"batch_by": "atoms", "batch_size": 20}))
    batch = next(task.batches(range(1)))
    assert batch.graph.composition.shape[0] == 4  # two structures of 8 atoms, two views of each
    assert torch.equal(batch.graph.batch.bincount(), torch.tensor([8, 8, 8, 8]))


def test_batches_by_edges_count_those_of_the_file(data: Path, tmp_path: Path) -> None:
    """With the neighbour lists of the model's cutoff, read now or converted; views of them have about as many."""
    convert([data], tmp_path / "far", 4.0, Limits())
    convert([data], tmp_path / "near", 2.0, Limits())
    for path, cutoff in ((data, 3.6), (tmp_path / "far", 4.0)):
        task = Pretraining(plan(path, trainer={"batch_by": "edges", "batch_size": 300}))
        truth = [len(neighbor_list("i", task.data.train.atoms(k), cutoff)) for k in range(len(task.data.train))]
        assert task.order.sizes.tolist() == truth
        for step in range(5):
            assert sum(truth[k] for k in task.order.batch(step)) <= 300
    ratios = [b.graph.edge_index.shape[1] / sum(2 * truth[k] for k in task.order.batch(s)) for s, b in first(task, 5)]
    assert all(0.1 < ratio < 1.1 for ratio in ratios)
    with pytest.raises(UserError, match=r"neighbours up to 2 Å and the model sees 3.6 Å; convert the data again"):
        Pretraining(plan(tmp_path / "near", trainer={"batch_by": "edges"}))


def first(task: Pretraining, n: int) -> Iterator[tuple[int, Views]]:
    return enumerate(task.batches(range(n)))


# ---- where structures lie ----


def same(one: Views, two: Views) -> bool:
    pairs = [*zip(one.graph, two.graph, strict=True), (one.noise, two.noise), (one.sigma, two.sigma), (one.pairs, two.pairs)]
    return one.key == two.key and all(torch.equal(a, b) for a, b in pairs)


def test_packed_structures_make_the_views_that_their_files_make(data: Path, tmp_path: Path) -> None:
    """Whatever the cutoff of their neighbour lists, and without asking for labels."""
    convert([data], tmp_path / "packed", 1.0, Limits())
    from_file, packed = Pretraining(plan(data)), Pretraining(plan(tmp_path / "packed"))
    assert from_file.split() == packed.split()
    for (_, one), (_, two) in zip(first(from_file, 6), first(packed, 6), strict=True):
        assert same(one, two)
    assert all(same(one, two) for one, two in zip(from_file.validation(), packed.validation(), strict=True))


def test_packed_structures_and_workers_change_nothing(data: Path, straight: Path, tmp_path: Path) -> None:
    convert([data], tmp_path / "packed", 1.0, Limits())
    assert train(plan(tmp_path / "packed", trainer={"workers": 2}), tmp_path / "run").status == "finished"
    assert equal(weights(tmp_path / "run" / "last.ckpt"), weights(straight / "last.ckpt"))
    assert log(tmp_path / "run")[-1] == log(straight)[-1]


def test_labels_are_not_looked_at_and_what_was_put_aside_has_no_name(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFDEPLOY_SCRATCH", str(tmp_path))
    atoms = bulk("Si", cubic=True)
    atoms.calc = SinglePointCalculator(atoms, energy=np.nan, forces=np.full((8, 3), np.inf))
    write(tmp_path / "bad.extxyz", [atoms] * 3, format="extxyz")
    task = Pretraining(plan(data, data={"files": [str(data), str(tmp_path / "bad.extxyz")]}))
    assert [f.name for f in tmp_path.iterdir()] == ["bad.extxyz"]
    assert len(task.data.train) + len(task.data.validation) + len(task.data.test) == 27
    assert isinstance(task.data.train.packs[0].arrays["positions"], np.memmap)
    monkeypatch.setenv("TFDEPLOY_SCRATCH", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"cannot keep the structures of .*: No such file.* set TFDEPLOY_SCRATCH to a folder"):
        Pretraining(plan(data))
