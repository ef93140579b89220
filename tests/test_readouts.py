"""The three readouts: what each promises of supercells, forces and far-apart structures, and what it breaks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from tests.tiny import TINY, tiny_model
from triforces_deploy import derivatives
from triforces_deploy.errors import UserError
from triforces_deploy.graph import collate
from triforces_deploy.heads import EnergyHead, Readout
from triforces_deploy.model import Model
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.potential import Potential

READOUTS: tuple[Readout, ...] = ("sum", "mean", "total")


def model_with(readout: Readout) -> Model:
    return tiny_model(dataclasses.replace(TINY, readout=readout, zbl=False))


def crystal() -> Atoms:
    atoms = bulk("Si", "diamond", 5.43, cubic=True)
    atoms.symbols = "Si5Ge3"
    atoms.rattle(0.1, seed=2)
    return atoms


def energy(model: Model, atoms: Atoms) -> float:
    return float(model(graph_from_atoms(atoms, TINY.cutoff)).sum())


def references(model: Model, atoms: Atoms) -> float:
    return float(model.references[torch.from_numpy(atoms.numbers).long()].sum())


def forces(model: Model, atoms: Atoms) -> torch.Tensor:
    graph = graph_from_atoms(atoms, TINY.cutoff)
    return derivatives.forces(derivatives.evaluate(model, graph).edge_forces, graph)


@pytest.mark.parametrize("readout", READOUTS)
def test_energy_is_that_of_the_formula(readout: Readout) -> None:
    model, atoms = model_with(readout), crystal()
    h = torch.cat(list(model.embeddings(graph_from_atoms(atoms, TINY.cutoff)).values()), 1).numpy()
    first, last = model.head.layers[0], model.head.layers[2]

    def g(x: np.ndarray) -> np.ndarray:
        hidden = x @ first.weight.numpy().T + first.bias.numpy()
        return (hidden / (1 + np.exp(-hidden))) @ last.weight.numpy().T + last.bias.numpy()

    learned = {"sum": g(h).sum(), "mean": len(atoms) * g(h.mean(0)).sum(), "total": g(h.mean(0)).sum()}[readout]
    assert energy(model, atoms) == pytest.approx(0.7 * learned + references(model, atoms), rel=1e-12)
    assert model(graph_from_atoms(atoms, TINY.cutoff)).std() > 1e-3  # atoms have energies of their own


@pytest.mark.parametrize("readout", READOUTS)
def test_forces_are_minus_the_derivative_of_the_energy(readout: Readout) -> None:
    model, atoms, h = model_with(readout), crystal(), 1e-4
    found = forces(model, atoms)
    for atom, axis in [(0, 0), (6, 2)]:
        energies = []
        for step in (-2, -1, 1, 2):
            moved = atoms.copy()
            moved.positions[atom, axis] += step * h
            energies.append(energy(model, moved))
        slope = (energies[0] - 8 * energies[1] + 8 * energies[2] - energies[3]) / (12 * h)
        assert float(found[atom, axis]) == pytest.approx(-slope, rel=1e-7, abs=1e-8)


@pytest.mark.parametrize("readout", READOUTS)
def test_supercells(readout: Readout) -> None:
    """Sum and mean are extensive; with the total, the learned part stays as it was and the forces shrink."""
    model, atoms = model_with(readout), crystal()
    large, n = atoms * (3, 1, 1), 3
    learned, of_large = (energy(model, a) - references(model, a) for a in (atoms, large))
    assert of_large == pytest.approx(learned if readout == "total" else n * learned, rel=1e-10)
    ratio = forces(model, large)[: len(atoms)] / forces(model, atoms)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 1 / n if readout == "total" else 1.0), rtol=1e-7, atol=0)


@pytest.mark.parametrize("readout", READOUTS)
def test_only_the_sum_is_separable_and_says_so(readout: Readout) -> None:
    """A compressed and a stretched fragment of the same composition, far apart."""
    model = model_with(readout)
    one, two = Atoms("Si2", [(0, 0, 0), (2.0, 0, 0)]), Atoms("Si2", [(90, 0, 0), (93.1, 0, 0)])
    excess = energy(model, one + two) - energy(model, one) - energy(model, two)
    assert (abs(excess) < 1e-10) == (readout == "sum")
    assert model.facts().separable == (readout == "sum")


@pytest.mark.parametrize("readout", READOUTS)
def test_structures_of_a_batch_do_not_see_each_other(readout: Readout) -> None:
    model = model_with(readout)
    graphs = [graph_from_atoms(a, TINY.cutoff) for a in (crystal(), Atoms("Ge"), crystal()[:5])]
    together = derivatives.energy(model(collate(graphs)), collate(graphs))
    apart = torch.stack([model(g).sum() for g in graphs])
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=0)


def test_the_mean_is_taken_over_owned_atoms() -> None:
    head = EnergyHead(3, (), "mean").double()
    graph = graph_from_atoms(Atoms("Si4", [(9.0 * k, 0, 0) for k in range(4)]), 4.0)
    graph = graph._replace(owned=torch.tensor([True, True, False, False]))
    features = torch.randn(4, 3, dtype=torch.float64)
    expected = head.layers(features[:2].mean(0)) * 2
    torch.testing.assert_close(head([features], graph)[:2].sum()[None], expected, rtol=1e-14, atol=0)


def test_a_mean_cannot_be_shared_between_ranks() -> None:
    model = model_with("mean")
    graph = graph_from_atoms(crystal(), TINY.cutoff)
    with pytest.raises(UserError, match="a model that is not separable runs on one rank"):
        Potential(model.facts(), model.run, "eager").evaluate(graph._replace(owned=graph.numbers == 14))
