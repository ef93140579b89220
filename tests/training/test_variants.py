"""Models that export converts or refuses can be trained all the same, and the checkpoint says what it needs to know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.small import MODEL, labels, recipe, structures, train, written
from triforces_deploy import checkpoint
from triforces_deploy.errors import UserError
from triforces_deploy.neighbour_cap import nearest
from triforces_deploy.training.data import load
from triforces_deploy.training.evaluate import evaluate

LATTICE = {"structure": {**MODEL["structure"], "lattice": True}}


@pytest.mark.parametrize(
    "change", [{"readout": "mean"}, {"readout": "total"}, LATTICE, {"max_neighbours": 3}, {"direct": True}], ids=str
)
def test_it_trains_and_evaluates(change: dict[str, Any], tmp_path: Path) -> None:
    path = labels(tmp_path)
    plan = recipe(path, model=change, trainer={"steps": 6, "validate_every": 6})
    result = train(plan, tmp_path / "run")
    assert result.metrics is not None
    assert result.metrics.forces_rmse > 0
    model, _ = checkpoint.load(result.best)
    assert model.config == plan.model
    # The same structures through `evaluate`: the cap is applied there too.
    assert evaluate(result.best, part="validation").model.forces_rmse == pytest.approx(result.metrics.forces_rmse, rel=1e-9)


def test_training_graphs_are_cut_to_the_cap(tmp_path: Path) -> None:
    path = labels(tmp_path, trajectories=3, frames=1)
    full, cut = (load(p.data, p.model) for p in (recipe(path), recipe(path, model={"max_neighbours": 3})))
    for a, b in zip(full.train, cut.train, strict=True):
        kept = nearest(a.graph, 3)
        assert len(kept) < a.graph.edge_vector.shape[0]
        assert torch.equal(b.graph.edge_vector, a.graph.edge_vector[kept])


def test_the_checkpoint_names_the_elements_of_the_training_part(tmp_path: Path) -> None:
    """Not those of the model, nor those that only held-out structures have."""
    pure, mixed = structures(4, 2), structures(1, 2)
    for atoms in pure:
        atoms.numbers[:] = 14
    for atoms in mixed:
        atoms.numbers[0] = 32
        atoms.info["trajectory"] = "apart"
    path, own = written(tmp_path, *pure), written(tmp_path, *mixed, name="own.extxyz")
    plan = recipe(path, data={"validation_files": [str(own)], "test": 0.0}, trainer={"steps": 2, "validate_every": 2})
    _, provenance = checkpoint.load(train(plan, tmp_path / "run").last)
    assert provenance["elements"] == ["Si"]
    assert plan.model.elements == ("Si", "Ge")


def test_a_table_is_not_trained(tmp_path: Path) -> None:
    table = {"composition": {**MODEL["composition"], "table": True}}
    with pytest.raises(UserError, match=r"model.composition.table is made by `tfdeploy export`"):
        train(recipe(labels(tmp_path), model=table), tmp_path / "run")
