"""The terms on a model: signs, symmetries, what may be seen and what learns."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from tests.training.small import MODEL
from triforces_deploy.config import ModelConfig, read
from triforces_deploy.model import Model
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.training.batches import random_rotations
from triforces_deploy.training.objectives.base import Seen, Views
from triforces_deploy.training.objectives.config import ObjectiveConfig
from triforces_deploy.training.objectives.denoising import VectorHead, by_gradient
from triforces_deploy.training.objectives.learner import Learner
from triforces_deploy.training.view_config import ViewsConfig
from triforces_deploy.training.views import two_views

EVERY: dict[str, Any] = {
    "denoise": {}, "masked": {"hidden": [8]}, "lejepa": {"slices": 32, "hidden": 16, "width": 8},
    "barlow": {"hidden": [16], "width": 8}, "simsiam": {"hidden": 16, "width": 8},
}  # fmt: skip


def objective(terms: dict[str, Any]) -> ObjectiveConfig:
    return read(ObjectiveConfig, terms, "objective")


def learner(terms: dict[str, Any], **changes: Any) -> Learner:
    torch.manual_seed(0)
    model = Model(read(ModelConfig, {**MODEL, **changes}, "model"))
    model.set_network_dtype(torch.float64)
    return Learner(model, objective(terms))


def crystal() -> Atoms:
    atoms = bulk("Si", "diamond", 5.43, cubic=True)
    atoms.numbers[:3] = 32
    return atoms


def views(config: ViewsConfig | None = None, n: int = 3, key: int = 1) -> Views:
    config = config or ViewsConfig(radius=(3.0, 3.6), draw=("mask",), chance=1.0, strategies=("atom",))
    return two_views([(crystal(), (9, k)) for k in range(n)], config, 3.6, key)


def test_the_energy_of_the_gradient_head_rises_along_the_noise() -> None:
    """A harmonic crystal is at its minimum where it is clean: there ∂E/∂x predicts the noise with the right sign."""
    config = ViewsConfig(noise=(0.02, 0.02), draw=())
    found = views(config, n=2)
    leaf = found.graph._replace(edge_vector=found.graph.edge_vector.requires_grad_(True))
    r = leaf.edge_vector.norm(dim=1)
    bonds = torch.where(r < 3.0, 0.25 * (r - 5.43 * 3**0.5 / 4) ** 2, torch.zeros_like(r))
    seen = Seen(found, leaf, {}, bonds)
    prediction = by_gradient(seen).detach()
    cosine = (prediction * found.noise).sum() / (prediction.norm() * found.noise.norm())
    assert float(cosine) > 0.5


def test_the_gradient_head_is_the_derivative_of_the_energy_by_positions() -> None:
    taught = learner({"denoise": {"head": "gradient"}})
    atoms = crystal()
    atoms.rattle(0.1, seed=0)

    def energy(atoms: Atoms) -> float:
        graph = graph_from_atoms(atoms, 3.6)
        return float(taught.model.head(list(taught.model.embeddings(graph).values()), graph).detach().sum())

    graph = graph_from_atoms(atoms, 3.6)
    blank = torch.zeros(0)
    seen = taught.look(Views(graph, blank, blank, blank, blank, 0))
    found = by_gradient(seen).detach().numpy()
    for atom, axis in ((0, 0), (4, 2)):
        ends = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * 1e-4
            ends.append(energy(moved))
        assert found[atom, axis] == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-5, abs=1e-8)


def test_the_vector_head_turns_with_the_structure() -> None:
    torch.manual_seed(0)
    head = VectorHead(5, 3.6).double()
    found = views()
    turn = random_rotations(1, np.random.default_rng(0))[0]
    features = torch.randn((len(found.numbers), 5), dtype=torch.float64)
    turned = found.graph._replace(edge_vector=found.graph.edge_vector @ turn.T)
    plain, after = (head(Seen(found, graph, {"a": features}, None)) for graph in (found.graph, turned))
    torch.testing.assert_close(after, plain @ turn.T, rtol=1e-9, atol=1e-11)
    assert float(plain.detach().abs().max()) > 1e-3


@pytest.mark.parametrize("backbone", ["orb_v3", "esen", "mace"])
def test_the_element_of_a_masked_atom_is_nowhere(backbone: str) -> None:
    """Two structures that differ only in masked elements look the same, and unlike one with another real element there."""
    options = {
        "orb_v3": MODEL["backbone"]["options"],
        "esen": {"channels": 8, "hidden": 8, "edge_channels": 8, "n_layers": 1, "n_gaussians": 8},
        "mace": {"channels": 8},
    }[backbone]
    taught = learner({"masked": {"hidden": [8]}}, backbone={"name": backbone, "options": options})
    found = views()
    hidden = found.graph.numbers == 0
    other = found._replace(numbers=torch.where(hidden, 46 - found.numbers, found.numbers))
    a, b = (taught.look(v).joint() for v in (found, other))
    assert torch.equal(a, b)
    for element in (14, 32):
        numbers = torch.where(hidden, torch.full_like(found.numbers, element), found.numbers)
        counts = torch.zeros_like(found.graph.composition)
        counts.index_put_((found.graph.batch, numbers), torch.ones(len(numbers), dtype=counts.dtype), accumulate=True)
        real = found._replace(graph=found.graph._replace(numbers=numbers, composition=counts))
        streams, masked = taught.look(real).streams, taught.look(found).streams
        assert all(not torch.allclose(streams[k], masked[k]) for k in ("composition", "interaction"))
    assert float(taught(found)["masked"].detach()) != float(taught(other)["masked"].detach())


def test_a_row_for_masked_atoms_changes_nothing_else() -> None:
    plain, taught = learner(EVERY).model, learner(EVERY).model
    graph = graph_from_atoms(crystal(), 3.6)
    torch.manual_seed(0)
    plain = Model(plain.config)
    plain.set_network_dtype(torch.float64)
    torch.testing.assert_close(taught(graph), plain(graph), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("head", ["vector", "direct", "gradient"])
def test_every_parameter_there_is_learns_and_all_are_there_from_the_start(head: str) -> None:
    taught = learner({**EVERY, "denoise": {"head": head}})
    before = {name for name, _ in taught.named_parameters()}
    sum(taught(views()).values(), torch.zeros((), dtype=torch.float64)).backward()
    assert {name for name, _ in taught.named_parameters()} == before
    lost = {n for n, p in taught.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    # Constants before a norm over the batch, and of an energy, have no consequences.
    kept = {n for n in lost if not n.endswith("bias")}
    assert kept == set()
    assert taught.model.head.layers[0].weight.requires_grad == (head == "gradient")


@pytest.mark.parametrize("of", ["joint", "streams"])
def test_embeddings_of_one_view_twice_are_invariant(of: str) -> None:
    """Without SIGReg nothing is left then; with another view something is."""
    taught = learner({"lejepa": {**EVERY["lejepa"], "sigreg": 0.0, "of": of}})
    found = views()
    half = len(found.numbers) // 2
    same = found._replace(
        graph=found.graph._replace(
            numbers=found.graph.numbers[:half].repeat(2),
            edge_vector=found.graph.edge_vector[found.graph.edge_index[1] < half].repeat(2, 1),
            edge_index=torch.cat([(e := found.graph.edge_index[:, found.graph.edge_index[1] < half]), e + half], dim=1),
            composition=found.graph.composition[:3].repeat(2, 1),
        )
    )
    assert float(taught(same)["lejepa"].detach()) < 1e-25
    assert float(taught(found)["lejepa"].detach()) > 1e-6
    assert len(taught.terms["lejepa"].projectors) == (2 if of == "joint" else 6)  # type: ignore[arg-type]


def test_unit_targets_are_the_noise_over_its_width() -> None:
    one, two = (learner({"denoise": {"target": target}}) for target in ("noise", "unit"))
    found = views(ViewsConfig(noise=(0.1, 0.1), draw=()))
    for taught in (one, two):
        taught.terms["denoise"].head.layers[-1].weight.data.zero_()  # type: ignore[union-attr]
        taught.terms["denoise"].head.layers[-1].bias.data.zero_()  # type: ignore[union-attr]
    raw, unit = (float(taught(found)["denoise"].detach()) for taught in (one, two))
    assert raw == pytest.approx(float(found.noise.square().sum(1).mean()), rel=1e-12)
    assert unit == pytest.approx(100 * raw, rel=1e-12)


def test_nothing_masked_is_no_loss() -> None:
    taught = learner({"masked": {"hidden": [8]}})
    assert float(taught(views(ViewsConfig(draw=(), radius=(3.0, 3.6))))["masked"].detach()) == 0.0


def test_losses_in_validation_are_those_of_training() -> None:
    taught = learner({**EVERY, "denoise": {"head": "gradient"}})
    found = views()
    with torch.no_grad():
        quiet = taught.eval()(found)
    for name, loss in taught.train()(found).items():
        assert float(quiet[name].detach()) == pytest.approx(float(loss.detach()), rel=1e-12), name


@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # torch's, on norms that it keeps in float32
def test_the_terms_keep_their_precision_where_the_model_multiplies_in_bfloat16() -> None:
    taught = learner(EVERY)
    taught.model.set_network_dtype(torch.float32)
    taught.terms.float()
    found = views()
    plain = taught(found)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = taught(found)
    for name, loss in coarse.items():
        assert loss.dtype == plain[name].dtype != torch.bfloat16, name
        assert float(loss.detach()) == pytest.approx(float(plain[name].detach()), rel=0.1, abs=0.02), name


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        objective(EVERY).denoise = None  # type: ignore[misc]
