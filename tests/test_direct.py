"""Forces and stress that are read off the features: what turns, what vanishes, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from tests.tiny import TINY, tiny_model
from triforces_deploy.calculator import TriForcesCalculator
from triforces_deploy.config import BackboneConfig, ModelConfig
from triforces_deploy.direct import without_torque
from triforces_deploy.eager import as_trained
from triforces_deploy.errors import UserError
from triforces_deploy.graph import collate
from triforces_deploy.model import Model
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.nn.zbl import UNIVERSAL, pair_energy

ESEN = Path(__file__).parent / "fixtures" / "esen" / "small.npz"
SMALL = {"channels": 6, "hidden": 5, "edge_channels": 7, "n_layers": 2, "n_gaussians": 8}


def oriented() -> Model:
    """Direct heads of vectors and tensors beside two more streams; random weights."""
    return tiny_model(dataclasses.replace(TINY, backbone=BackboneConfig("esen", SMALL), direct=True, zbl=False))


def crystal() -> Atoms:
    atoms = bulk("Si", "diamond", 5.43, cubic=True)
    atoms.symbols = "Si5Ge3"
    atoms.rattle(0.1, seed=2)
    return atoms


def test_forces_of_vectors_are_those_of_the_public_linear_head() -> None:
    with np.load(ESEN) as file:
        golden = dict(file)
    options = json.loads(str(golden["options"]))
    elements = ("H", "C", "O", "Na", "Si", "Cl", "Ca", "Ti", "Cu", "Xe")
    config = ModelConfig(elements, 5.0, BackboneConfig("esen", options), None, None, head_hidden=(4,), direct=True)
    model = Model(config).requires_grad_(False)
    weights = {k.removeprefix("weight/"): torch.from_numpy(v) for k, v in golden.items() if k.startswith("weight/")}
    model.interaction.load_state_dict(weights)
    assert model.direct is not None
    last = model.direct.forces[2]
    last.weight.zero_()
    last.bias.copy_(torch.from_numpy(golden["vector/weight"])[1, 0])
    model.set_network_dtype(torch.float64)
    for key in ("molecule", "crystal", "straight", "tiny", "triclinic", "isolated"):
        cell, pbc = golden[f"cell/{key}"], golden[f"pbc/{key}"]
        atoms = Atoms(golden[f"numbers/{key}"], positions=golden[f"positions/{key}"], cell=cell, pbc=pbc)
        found = model.directly(graph_from_atoms(atoms, 5.0))[1].forces.numpy()
        expected = golden[f"vectors/{key}"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * max(np.abs(expected).max(), 1e-3))


def test_forces_and_stress_turn_with_the_structure() -> None:
    model, graph = oriented(), graph_from_atoms(crystal(), TINY.cutoff)
    rotation = torch.from_numpy(np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0])
    rotation = rotation * torch.linalg.det(rotation)
    energies, (forces, stress) = model.directly(graph)
    of_turned, (turned_forces, turned_stress) = model.directly(graph._replace(edge_vector=graph.edge_vector @ rotation.T))
    torch.testing.assert_close(of_turned, energies, rtol=1e-11, atol=0)
    torch.testing.assert_close(turned_forces, forces @ rotation.T, rtol=0, atol=1e-11 * float(forces.abs().max()))
    turned = rotation @ stress @ rotation.T
    torch.testing.assert_close(turned_stress, turned, rtol=0, atol=1e-11 * float(stress.abs().max()))
    traceless = stress - stress.diagonal(dim1=1, dim2=2).mean() * torch.eye(3)
    assert traceless.abs().max() > 1e-3 * stress.abs().max()


@pytest.mark.parametrize("backbone", ["esen", "orb_v3"])
def test_structures_of_a_batch_do_not_see_each_other(backbone: str) -> None:
    model = oriented() if backbone == "esen" else tiny_model(dataclasses.replace(TINY, direct=True))
    graphs = [graph_from_atoms(a, TINY.cutoff) for a in (crystal(), Atoms("Ge"), crystal()[:5])]
    _, together = model.directly(collate(graphs))
    apart = [model.directly(graph)[1] for graph in graphs]
    torch.testing.assert_close(together.forces, torch.cat([d.forces for d in apart]), rtol=0, atol=1e-12)
    torch.testing.assert_close(together.stress, torch.cat([d.stress for d in apart]), rtol=0, atol=1e-12)


def test_the_repulsion_is_differentiated_and_no_net_force_is_left() -> None:
    """A dimer whose network parts cancel in the difference of two models; what remains is −dV/dr of the closed formula."""
    plain, repelled = (tiny_model(dataclasses.replace(TINY, direct=True, zbl=zbl)) for zbl in (False, True))
    graph = graph_from_atoms(Atoms("SiGe", positions=[[0, 0, 0], [0, 0, 0.3]]), TINY.cutoff)
    with torch.no_grad():
        difference = repelled.directly(graph)[1].forces - plain.directly(graph)[1].forces
    r = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    numbers = torch.tensor([[14.0], [32.0]], dtype=torch.float64)
    pair_energy(r, *numbers, UNIVERSAL).sum().backward()
    assert r.grad is not None
    # The envelope begins with the sixth power of r / (r_Si + r_Ge), below 1e-4 here.
    assert float(difference[1, 2]) == pytest.approx(-float(r.grad), rel=0.02)
    assert float(difference.sum(0).abs().max()) < 1e-9 * float(difference.abs().max())
    assert float(plain.directly(graph)[1].forces.sum(0).abs().max()) < 1e-12


def test_ase_gets_them_and_no_torque_turns_a_molecule() -> None:
    model = tiny_model(dataclasses.replace(TINY, direct=True, elements=("H", "C", "O")))
    calculator = TriForcesCalculator(as_trained(model))
    atoms = molecule("CH3CH2OH")
    calculator.calculate(atoms)
    read = model.directly(graph_from_atoms(atoms, TINY.cutoff))[1].forces.numpy()
    arms = atoms.positions - atoms.positions.mean(0)
    assert np.abs(np.cross(arms, read).sum(0)).max() > 1e-3
    found = calculator.results["forces"]
    assert np.abs(np.cross(arms, found).sum(0)).max() < 1e-12
    # The smallest such change is at right angles to every set of forces without torque, among them those that are left.
    assert abs(((read - found) * found).sum()) < 1e-12 * (read * read).sum()


def test_atoms_on_a_line_keep_what_has_no_torque() -> None:
    positions = torch.tensor([[0.0, 0, 0], [0, 0, 1.1], [0, 0, 2.5]], dtype=torch.float64)
    along = torch.tensor([[0.0, 0, -1], [0, 0, 0.4], [0, 0, 0.6]], dtype=torch.float64)
    torch.testing.assert_close(without_torque(along, positions), along, rtol=0, atol=1e-14)
    across = torch.tensor([[1.0, 0, 0], [0, 0, 0], [-1.0, 0, 0]], dtype=torch.float64)
    left = without_torque(across, positions)
    arms = positions - positions.mean(0)
    torch.testing.assert_close(torch.linalg.cross(arms, left).sum(0), torch.zeros(3).double(), rtol=0, atol=1e-14)


def test_a_direct_model_says_so_and_runs_on_one_rank() -> None:
    facts = tiny_model(dataclasses.replace(TINY, direct=True)).facts()
    assert not facts.conservative
    with pytest.raises(UserError, match="runs on one rank"):
        facts.refuse_ranks()


def test_no_forces_can_be_read_off_invariants() -> None:
    with pytest.raises(UserError, match=r"model\.direct: mace gives nothing that turns with the structure"):
        tiny_model(dataclasses.replace(TINY, direct=True, backbone=BackboneConfig("mace", {"channels": 2})))


def test_a_conservative_model_takes_over_all_but_the_heads() -> None:
    """What is pretrained directly has the energies of a model that can be fine-tuned with derivatives and deployed."""
    model = tiny_model(dataclasses.replace(TINY, direct=True))
    heir = tiny_model(TINY, seed=1)
    heir.load_state_dict({key: t for key, t in model.state_dict().items() if not key.startswith("direct.")})
    graph = graph_from_atoms(crystal(), TINY.cutoff)
    torch.testing.assert_close(heir(graph), model.directly(graph)[0], rtol=1e-13, atol=0)
    assert heir.facts().conservative
