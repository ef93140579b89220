"""Replay: old structures in every batch, the same for a step whoever makes it, counted from the zero of the new ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from tests.training.small import equal, recipe, structures, train, weights
from triforces_deploy import checkpoint
from triforces_deploy.errors import UserError
from triforces_deploy.training.batches import Stream
from triforces_deploy.training.data import load, load_whole
from triforces_deploy.training.recipe import Recipe
from triforces_deploy.training.structures import Sample
from triforces_deploy.training.supervised import Supervised

SHORT = {"steps": 4, "validate_every": 4, "log_every": 4}
ZEROS = {14: -100.0, 32: 37.0}
"""eV. What the old labels count for each atom besides."""


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other structures of the same potential, whose energies have another zero."""
    found = structures(3, 3, seed=7)
    for atoms in found:
        energy = atoms.get_potential_energy() + sum(ZEROS[z] for z in atoms.numbers)
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=atoms.get_forces(), stress=atoms.get_stress())
    path = tmp_path_factory.mktemp("old") / "old.extxyz"
    write(path, found, format="extxyz")
    return path


def plan_with(data: Path, old: Path, share: float = 0.4, **sections: dict[str, object]) -> Recipe:
    init = {"replay": {"files": [str(old)], "share": share}, **sections.pop("init", {})}
    return recipe(data, init=init, trainer={**SHORT, **sections.pop("trainer", {})}, **sections)


def assert_same(one: Sample, other: Sample) -> None:
    torch.testing.assert_close(one.graph.edge_vector, other.graph.edge_vector, rtol=0, atol=0)
    torch.testing.assert_close(one.energy, other.energy, rtol=0, atol=0)


def test_each_batch_has_its_share_of_old_structures_and_all_of_them_come(data: Path, old: Path) -> None:
    plan = plan_with(data, old)
    train_part = load(plan.data, plan.model).train
    old_part, files = load_whole([str(old)], plan.model)
    assert list(files) == [str(old)]
    stream = Stream(train_part, 5, "structures", 3, rotate=False, old=old_part, share=0.4)
    n = len(train_part)
    seen = [stream.chosen(step) for step in range(18)]
    assert [sum(k >= n for k in chosen) for chosen in seen] == [2] * 18
    assert [len(chosen) for chosen in seen] == [5] * 18
    theirs = [k - n for chosen in seen for k in chosen if k >= n]
    assert all(sorted(theirs[p : p + 9]) == list(range(9)) for p in range(0, 36, 9))  # pass by pass
    assert theirs[:9] != theirs[9:18]
    batch = next(stream.batches(range(3, 4)))
    energies = [float((old_part if k >= n else train_part)[k - n if k >= n else k].energy) for k in seen[3]]
    np.testing.assert_array_equal(batch.energy.numpy(), energies)


def test_a_step_has_the_same_batch_whoever_makes_it(data: Path, old: Path, tmp_path: Path) -> None:
    """In another order, in shares, and in other processes: the weights are the same to the last bit."""
    plan = plan_with(data, old)
    tasks = [Supervised(plan), Supervised(plan)]
    for task in tasks:
        task.new_learner()
    straight = list(tasks[0].batches(range(6)))
    for step, sample in zip((5, 3, 1), tasks[1].batches(range(5, 0, -2)), strict=True):
        assert_same(sample, straight[step])
    shares = [next(tasks[1].batches(range(2, 3), rank, 2)) for rank in range(2)]
    assert sorted(torch.cat([s.energy for s in shares]).tolist()) == sorted(straight[2].energy.tolist())
    train(plan, tmp_path / "alone")
    train(plan_with(data, old, trainer={"workers": 2}), tmp_path / "helped")
    found = [weights(tmp_path / name / "last.ckpt") for name in ("alone", "helped")]
    assert equal(*found)
    provenance = checkpoint.load(tmp_path / "alone" / "last.ckpt")[1]
    assert list(provenance["replayed"]) == [str(old)]
    assert list(provenance["files"]) == [str(data)]


@pytest.mark.parametrize("strategy", ["full", "full-transfer"])
def test_old_energies_are_counted_from_the_zero_of_the_new_ones(
    strategy: str, data: Path, old: Path, straight: Path, tmp_path: Path
) -> None:
    """The old labels are Lennard-Jones and −100 eV for Si, 37 eV for Ge: the fit finds these differences by itself."""
    plan = plan_with(data, old, init={"checkpoint": str(straight / "best.ckpt"), "strategy": strategy})
    task = Supervised(plan)
    task.new_learner()
    assert task.stream.shift is not None
    for z, zero in ZEROS.items():
        assert float(task.stream.shift[z]) == pytest.approx(-zero, abs=2.0)
    batch = next(task.batches(range(1)))
    assert float((batch.energy / 8).std()) < 2.0
    assert float((next(Stream.batches(_unmoved(task), range(1))).energy / 8).std()) > 10.0
    assert batch.forces.isfinite().all()
    assert train(plan, tmp_path).status == "finished"


def _unmoved(task: Supervised) -> Stream:
    task.stream.shift = None
    return task.stream


def test_what_cannot_be_replayed(data: Path, old: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is new data too"):
        Supervised(plan_with(data, data))
    with pytest.raises(UserError, match=r"raise trainer\.batch_size"):
        Supervised(plan_with(data, old, trainer={"batch_size": 1}))
    with pytest.raises(UserError, match="name them all in data"):
        train(plan_with(data, old, objective={"denoise": {"head": "gradient"}}), tmp_path)
    with pytest.raises(UserError, match="share of each batch between 0 and 1"):
        plan_with(data, old, share=1.0).init.check("init")


def test_another_old_file_is_another_run(data: Path, old: Path, tmp_path: Path) -> None:
    train(plan_with(data, old, trainer={"steps": 2, "validate_every": 2}), tmp_path / "run")
    copy = tmp_path / "moved.extxyz"
    copy.write_bytes(old.read_bytes())
    assert train(plan_with(data, copy, trainer={"steps": 2, "validate_every": 2}), tmp_path / "run").step == 2
    write(copy, structures(2, 3, seed=8), format="extxyz")
    with pytest.raises(UserError, match="another content of the data files"):
        train(plan_with(data, copy, trainer={"steps": 2, "validate_every": 2}), tmp_path / "run")
