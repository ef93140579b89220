"""Starting from another checkpoint: what is taken over, what moves, and how fast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.data import atomic_numbers

from tests.training.small import MODEL, labels, recipe, structures, train, weights, written
from triforces_deploy import checkpoint
from triforces_deploy.config import ModelConfig, read
from triforces_deploy.errors import UserError
from triforces_deploy.model import Model
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.training.evaluate import evaluate
from triforces_deploy.training.importance import ImportanceConfig, importance
from triforces_deploy.training.transfer import PARTS, STRATEGIES, groups, part_of

SHORT = {"steps": 2, "validate_every": 2, "log_every": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labels(tmp_path_factory.mktemp("labels"))


@pytest.fixture(scope="module")
def pretrained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of pretraining on the same structures; the average of the weights has moved."""
    plan = recipe(data, objective={"denoise": {"head": "gradient"}}, views={"radius": [3.0, 3.6]}, trainer=SHORT)
    return train(plan, tmp_path_factory.mktemp("pretrained")).last


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Parts of which a weight is another."""
    parameters = [n for n in before if n not in ("references", "scale") and before[n].is_floating_point()]
    return {part_of(n) for n in parameters if not torch.equal(before[n], after[n])}


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_strategies_take_over_and_train_what_their_names_say(
    strategy: str, data: Path, pretrained: Path, tmp_path: Path
) -> None:
    """At a rate of almost nothing the weights tell where they come from, at a real one what learns."""
    source, fresh = weights(pretrained), Model(recipe(data).model).state_dict()
    init = {"checkpoint": str(pretrained), "strategy": strategy}
    train(recipe(data, init=init, trainer=SHORT, optimiser={"lr": 1e-30}), tmp_path / "start")
    start = weights(tmp_path / "start" / "last.ckpt")
    new_head = strategy.endswith("transfer")
    assert moved(source, start) == ({"heads"} if new_head else set())
    assert set(fresh) == set(start)
    train(recipe(data, init=init, trainer=SHORT), tmp_path / "run")
    end = weights(tmp_path / "run" / "last.ckpt")
    assert moved(start, end) == ({"heads"} if strategy.startswith("head") else set(PARTS))
    said = checkpoint.load(tmp_path / "run" / "last.ckpt")[1]["init"]
    assert said["parts"] == list(PARTS if not new_head else PARTS[:2])


def test_streams_grow_around_a_frozen_backbone(data: Path, tmp_path: Path) -> None:
    alone = {"composition": None, "structure": None}
    bare = train(recipe(data, model=alone, trainer=SHORT), tmp_path / "bare").last
    init = {"checkpoint": str(bare), "parts": ["backbone"], "frozen": ["backbone"]}
    end = weights(train(recipe(data, init=init, trainer=SHORT), tmp_path / "run").last)
    backbone = {n: t for n, t in weights(bare).items() if part_of(n) == "backbone"}
    assert all(torch.equal(end[n], t) for n, t in backbone.items())
    assert any(n.startswith("composition") for n in end)


@pytest.mark.parametrize("streams", [("composition",), ("composition", "structure")])
def test_streams_around_a_fitted_model_change_no_energy_at_first(streams: tuple[str, ...], data: Path, tmp_path: Path) -> None:
    """The head stays and reads zeros times the new features; what it then learns to read moves the energy."""
    alone = {"composition": None, "structure": None, "head_skip": True}
    bare = train(recipe(data, model=alone, trainer=SHORT), tmp_path / "bare").last
    init = {"checkpoint": str(bare), "parts": ["backbone", "heads"], "frozen": ["backbone"]}
    added = alone | {name: MODEL[name] for name in streams}
    atoms, found = structures()[1], []
    for k, (model, rate) in enumerate([(alone, 1e-30), (added, 1e-30), (added, 1e-2)]):
        plan = recipe(data, model=model, init=init, trainer=SHORT, optimiser={"lr": rate})
        found.append(energy(train(plan, tmp_path / str(k)).last, atoms))
    assert found[1] == pytest.approx(found[0], rel=1e-12)
    assert abs(found[2] - found[1]) > 1e-4


def energy(path: Path, atoms: Atoms) -> float:
    """eV, of a checkpoint."""
    model = checkpoint.load(path)[0]
    with torch.no_grad():
        return float(model(graph_from_atoms(atoms, model.config.cutoff)).sum())


@pytest.mark.parametrize(("fitted", "taken"), [(True, "full"), (False, "full-transfer")])
def test_a_head_stays_that_has_seen_labels(fitted: bool, taken: str, data: Path, pretrained: Path, tmp_path: Path) -> None:
    source = train(recipe(data, trainer=SHORT), tmp_path / "first").last if fitted else pretrained
    train(recipe(data, init={"checkpoint": str(source)}, trainer=SHORT), tmp_path / "run")
    said = checkpoint.load(tmp_path / "run" / "last.ckpt")[1]["init"]
    assert said["parts"] == list(STRATEGIES[taken][0])


def test_a_part_thaws_at_its_step_and_a_stopped_run_goes_on_alike(data: Path, tmp_path: Path) -> None:
    init = {"thaw": {"backbone": 3}, "rates": {"streams": 0.0}}
    ends = {}
    for steps in (3, 4):
        plan = recipe(data, init=init, trainer={"steps": steps, "validate_every": 1, "save_every": 1})
        ends[steps] = weights(train(plan, tmp_path / str(steps)).last)
    torch.manual_seed(3)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        start = Model(recipe(data).model).double().state_dict()
    assert moved(start, ends[3]) == {"heads"}
    assert moved(ends[3], ends[4]) == {"heads", "backbone"}


def test_groups_have_rates_by_part_and_by_depth() -> None:
    options = {**MODEL["backbone"]["options"], "n_layers": 3}
    model = Model(read(ModelConfig, {**MODEL, "backbone": {"name": "orb_v3", "options": options}}, "model"))
    plan = recipe(Path("x"), init={"rates": {"streams": 0.5, "heads": 2.0}, "layer_decay": 0.1})
    rates = {id(p): g["rate"] for g in groups(model, plan.init, 0.01) for p in g["params"]}
    found = {name: rates[id(p)] for name, p in model.named_parameters()}
    assert len(rates) == len(found)
    for name, rate in found.items():
        expected = {"streams": 0.5, "heads": 2.0}.get(part_of(name))
        if expected is None:
            layer = int(name.split(".")[2]) if name.startswith("interaction.layers.") else -1
            expected = {2: 0.1, 1: 0.01, 0: 0.001, -1: 0.0001}[layer]
        assert rate == pytest.approx(expected), name
    decays = {id(p): g["weight_decay"] for g in groups(model, plan.init, 0.01) for p in g["params"]}
    assert all(decays[id(p)] == (0.01 if p.ndim > 1 else 0.0) for p in model.parameters())


def test_references_follow_labels_with_another_zero_of_energy(data: Path, tmp_path: Path) -> None:
    """The same crystals with 3 eV more for each Ge: a head that is kept needs no training to know."""
    first = train(recipe(data, trainer=SHORT), tmp_path / "first").last
    shifted = structures()
    for atoms in shifted:
        atoms.calc.results["energy"] += 3.0 * int((atoms.numbers == 32).sum())
    path = written(tmp_path, *shifted)
    init = {"checkpoint": str(first), "strategy": "full"}
    second = train(recipe(path, init=init, trainer=SHORT, optimiser={"lr": 1e-30}), tmp_path / "second").last
    before, after = weights(first)["references"], weights(second)["references"]
    assert float(after[32] - before[32] - (after[14] - before[14])) == pytest.approx(3.0, abs=0.3)
    assert torch.equal(weights(first)["scale"], weights(second)["scale"])
    # Least squares on the training part: no references do better there, those of the first with 3 eV more included.
    errors = [evaluate(path, part="train").model.energy_rmse for path in (first, second)]
    assert errors[1] <= errors[0] * (1 + 1e-9)


@pytest.mark.parametrize(
    ("change", "init", "message"),
    [
        ({}, {"checkpoint": "nowhere.ckpt"}, "nowhere.ckpt does not exist"),
        ({"cutoff": 3.5}, {}, "model.cutoff of the recipe is 3.5, that of .* is 3.6; make them equal"),
        ({"structure": None}, {}, "make them equal, or leave 'streams' out of init.parts"),
        ({"elements": ["Si", "Ge", "C"], "head_hidden": [8]}, {"strategy": "full"}, "'head.layers.0.weight' does not fit"),
    ],
)
def test_what_does_not_fit(
    change: dict[str, Any], init: dict[str, Any], message: str, data: Path, pretrained: Path, tmp_path: Path
) -> None:
    plan = recipe(data, model={**MODEL, **change}, init={"checkpoint": str(pretrained), **init})
    with pytest.raises(UserError, match=message) as caught:
        train(plan, tmp_path / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ({"thaw": {"backbones": 3}}, "unknown part 'backbones'; known: streams, backbone, heads"),
        ({"rates": {"heads": "fast"}}, "rates.heads: expected a number"),
        ({"frozen": ["streams", "backbone", "heads"]}, "all parts stand still"),
        ({"layer_decay": 0.0}, "layer_decay: expected a number above 0"),
    ],
)
def test_plans_that_make_no_sense(init: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe(Path("x"), init=init).init.check("recipe.yaml.init")


# ---- importance ----


def test_importance_is_the_product_over_foreign_atoms() -> None:
    """Against the formula, image by image; the nearest one of a dopant counts."""
    atoms = bulk("Si", "diamond", 5.43, cubic=True).repeat(2)
    atoms.numbers[[0, 9]] = [atomic_numbers["Ge"], atomic_numbers["C"]]
    found = importance(atoms, ImportanceConfig(("Si",)))
    shifts = np.array(np.meshgrid(*[[-1, 0, 1]] * 3)).reshape(3, -1).T @ atoms.cell.array
    expected = np.ones(len(atoms))
    for j in (0, 9):
        d2 = ((atoms.positions[:, None] - atoms.positions[j] - shifts) ** 2).sum(2).min(1)
        expected *= 1 + 5.0 / (d2 + 1.0)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found[0] > 6.0  # itself, and the other one
    assert (importance(atoms, ImportanceConfig(("Si", "Ge", "C"))) == 1).all()


def test_importance_weighs_the_loss_of_training_alone(tmp_path: Path) -> None:
    from triforces_deploy.training.objective import losses, predict
    from triforces_deploy.training.supervised import Supervised

    path = labels(tmp_path)
    plan = recipe(path, loss={"importance": {"host": ["Si"]}})
    task = Supervised(plan)
    model = task.new_learner()
    batch = next(task.batches(range(1)))
    assert batch.weights is not None
    error = (predict(model, batch.graph).forces - batch.forces).norm(dim=1)
    each = [(error * batch.weights)[batch.graph.batch == g].mean() for g in range(len(batch.energy))]
    found = task.losses(model, batch)["loss_forces"].detach()
    assert float(found) == pytest.approx(float(torch.stack(each).mean()), rel=1e-9)
    plain = losses(predict(model, batch.graph), batch._replace(weights=None), plan.loss).forces
    assert float(found) > 1.01 * float(plain)
    assert all(sample.weights is None for sample in task.validation())
    shares = [next(task.batches(range(1), rank, 2)).weights for rank in range(2)]
    assert sorted(torch.cat([w for w in shares if w is not None]).tolist()) == sorted(batch.weights.tolist())


def test_labels_that_are_missing_do_not_count(tmp_path: Path) -> None:
    """Structures without energy or forces among others: the loss is that of the others, and nothing is NaN."""
    from triforces_deploy.training.objective import Tally, known, losses, predict
    from triforces_deploy.training.supervised import Supervised

    task = Supervised(recipe(labels(tmp_path)))
    model = task.new_learner()
    batch = next(task.batches(range(1)))
    nan = float("nan")
    energy, forces = batch.energy.clone(), batch.forces.clone()
    energy[0] = nan
    forces[batch.graph.batch == 1] = nan
    missing = batch._replace(energy=energy, forces=forces)
    prediction = predict(model, batch.graph, create_graph=True)
    n = batch.graph.composition.sum(1)
    found = losses(prediction, missing, task.plan.loss)
    per_atom = ((prediction.energy - batch.energy) / n).abs().detach()
    assert float(found.energy.detach()) == pytest.approx(float(per_atom[1:].mean()), rel=1e-12)
    lengths = (prediction.forces - batch.forces).norm(dim=1).detach()
    each = torch.stack([lengths[batch.graph.batch == g].mean() for g in (0, 2, 3, 4)])
    assert float(found.forces.detach()) == pytest.approx(float(each.mean()), rel=1e-9)
    found.total.backward()  # type: ignore[no-untyped-call]
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    assert known(missing) == (4.0, 4.0, 5.0)
    tally = Tally()
    tally.add(prediction, missing)
    assert tally.metrics().energy_mae == pytest.approx(1000 * float(per_atom[1:].mean()), rel=1e-9)
    assert np.isfinite(tally.metrics().forces_rmse)
