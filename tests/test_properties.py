"""Heads of properties: what turns with the structure, what grows with it, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from tests.tiny import TINY, tiny_model
from triforces_deploy import checkpoint
from triforces_deploy.config import BackboneConfig, ModelConfig
from triforces_deploy.errors import UserError
from triforces_deploy.graph import Graph, collate
from triforces_deploy.model import Model
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.property_config import PropertyConfig

ESEN = BackboneConfig("esen", {"channels": 6, "hidden": 5, "edge_channels": 7, "n_layers": 2, "n_gaussians": 8})
ALL = tuple(
    PropertyConfig(f"{kind} {of} {pooling}", kind, of, pooling)
    for kind in ("scalar", "vector", "tensor")
    for of, pooling in (("structure", "mean"), ("structure", "sum"), ("atom", "mean"))
)


def model_of(backbone: BackboneConfig, properties: tuple[PropertyConfig, ...] = ALL) -> Model:
    """Random weights; means and spreads that are not 0 and 1."""
    model = tiny_model(dataclasses.replace(TINY, backbone=backbone, zbl=False, properties=properties))
    assert model.properties is not None
    for k in range(len(properties)):
        model.properties.mean[k] = 0.0 if properties[k].kind == "vector" else 2.0 + k
        model.properties.spread[k] = 0.5 + k
    return model


def crystal() -> Atoms:
    atoms = bulk("Si", "diamond", 5.43, cubic=True)
    atoms.symbols = "Si5Ge3"
    atoms.rattle(0.1, seed=2)
    return atoms


def graph_of(atoms: Atoms) -> Graph:
    return graph_from_atoms(atoms, TINY.cutoff)


def test_vectors_and_tensors_turn_with_the_structure_and_scalars_stay() -> None:
    model, graph = model_of(ESEN), graph_of(crystal())
    r = torch.from_numpy(np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0])
    r = r * torch.linalg.det(r)
    before, after = (model.properties_of(g) for g in (graph, graph._replace(edge_vector=graph.edge_vector @ r.T)))
    for config in ALL:
        one, other = before[config.name], after[config.name]
        assert one.shape == (1 if config.of == "structure" else 8, config.components())
        assert one.dtype == torch.float64
        if config.kind == "vector":
            one = one @ r.T
        elif config.kind == "tensor":
            matrices = one.view(-1, 3, 3)
            torch.testing.assert_close(matrices, matrices.mT, rtol=0, atol=1e-12)
            one = (r @ matrices @ r.T).flatten(1)
            assert float((other - before[config.name]).abs().max()) > 1e-3  # it is no multiple of the unit matrix
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backbone", [ESEN, TINY.backbone], ids=["esen", "orb_v3"])
def test_a_mean_stays_and_a_sum_doubles_with_the_structure_and_batches_change_nothing(backbone: BackboneConfig) -> None:
    model, atoms = model_of(backbone), crystal()
    one, two = (model.properties_of(graph_of(a)) for a in (atoms, atoms.repeat((1, 1, 2))))
    side_by_side = model.properties_of(collate([graph_of(a) for a in (atoms, atoms.repeat((1, 1, 2)))]))
    for config in ALL:
        single, double = one[config.name], two[config.name]
        expected = single.repeat(2, 1) if config.of == "atom" else single * (2 if config.pooling == "sum" else 1)
        torch.testing.assert_close(double, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(side_by_side[config.name], torch.cat([single, double]), rtol=1e-9, atol=1e-9)


def test_mean_and_spread_are_those_of_the_labels() -> None:
    """A head that says nothing gives the mean: of a tensor only its trace; what it says is in units of the spread."""
    model, graph = model_of(TINY.backbone), graph_of(crystal())
    heads = model.properties
    assert heads is not None
    for layers in heads.layers:
        layers[-1].weight.zero_()  # type: ignore[index, union-attr, operator]
        layers[-1].bias.zero_()  # type: ignore[index, union-attr, operator]
    found = model.properties_of(graph)
    for k, config in enumerate(ALL):
        unit = {"scalar": np.ones(1), "vector": np.zeros(3), "tensor": np.eye(3).ravel()}[config.kind]
        expected = (2.0 + k) * unit * (8 if config.pooling == "sum" else 1)
        np.testing.assert_allclose(found[config.name], np.broadcast_to(expected, found[config.name].shape))
    heads.layers[0][-1].bias.fill_(3.0)  # type: ignore[index, union-attr, operator]
    assert float(model.properties_of(graph)[ALL[0].name]) == pytest.approx(2.0 + 3.0 * 0.5)


def test_units_keep_their_precision_and_a_checkpoint_keeps_the_heads(tmp_path: Path) -> None:
    model = model_of(TINY.backbone, ALL[:2])
    assert model.properties is not None
    model.properties.mean[0] = 1 / 3
    model.set_network_dtype(torch.float32)
    checkpoint.save(tmp_path / "p.ckpt", model, {})
    again, _ = checkpoint.load(tmp_path / "p.ckpt")
    assert again.properties is not None
    assert float(again.properties.mean[0]) == 1 / 3
    assert again.head.dtype == torch.float32
    graph = graph_of(crystal())
    for name, value in model.properties_of(graph).items():
        torch.testing.assert_close(again.properties_of(graph)[name], value, rtol=0, atol=0)
    with pytest.raises(UserError, match=r"is fitted to properties \(.*\), its energies mean nothing"):
        checkpoint.load_fitted(tmp_path / "p.ckpt")


def test_what_no_head_can_give() -> None:
    mace = {"channels": 4, "l_hidden": 0, "l_max": 1, "correlation": [2]}
    config = ModelConfig(("Si",), 4.0, BackboneConfig("mace", mace), None, None, properties=(PropertyConfig("mu", "vector"),))
    with pytest.raises(UserError, match="mace gives nothing that turns with the structure, and 'mu' does"):
        Model(config)
    for names in (("a", "a"), ("a,b",), ("a/b",), ("$a$",), (" ",)):
        properties = tuple(PropertyConfig(name) for name in names)
        with pytest.raises(UserError, match="stands twice or holds one of"):
            Model(dataclasses.replace(TINY, properties=properties))
