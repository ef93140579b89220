"""A capped neighbour list against sorting by hand, and what it costs a model that has one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from tests.tiny import TINY, tiny_model
from triforces_deploy.derivatives import energy, forces
from triforces_deploy.errors import UserError
from triforces_deploy.exchange import exchange
from triforces_deploy.graph import Graph, collate
from triforces_deploy.model import Model
from triforces_deploy.neighbour_cap import TIE, capped, nearest
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.potential import Potential

CAPPED = dataclasses.replace(TINY, max_neighbours=6)


def rattled(repeat: int = 1) -> Atoms:
    atoms = bulk("Si", "diamond", 5.43, cubic=True)
    atoms.symbols = "Si5Ge3"
    atoms.rattle(0.15, seed=3)
    return atoms * repeat


def potential() -> Potential:
    model = tiny_model(CAPPED)
    return Potential(model.facts(), model.run, "eager")


def by_hand(graph: Graph, most: int) -> list[int]:
    kept = []
    distance = np.linalg.norm(graph.edge_vector.numpy(), axis=1)
    for atom in range(len(graph.numbers)):
        own = [e for e in range(len(distance)) if int(graph.edge_index[1, e]) == atom]
        reach = sorted(distance[own])[:most][-1:] or [0.0]
        kept += [e for e in own if distance[e] <= reach[0] + TIE]
    return sorted(kept)


@pytest.mark.parametrize("most", [1, 5, 17, 10_000])
def test_the_nearest_neighbours_are_those_found_by_hand(most: int) -> None:
    graph = collate([graph_from_atoms(a, 5.0) for a in (rattled(), Atoms("Si"), Atoms("SiGe", [(0, 0, 0), (0, 0, 2)]))])
    shuffled = torch.randperm(graph.edge_vector.shape[0], generator=torch.Generator().manual_seed(0))
    mixed = graph._replace(edge_index=graph.edge_index[:, shuffled], edge_vector=graph.edge_vector[shuffled])
    for g in (graph, mixed):
        assert nearest(g, most).tolist() == by_hand(g, most)


def test_no_tie_is_broken() -> None:
    """Twenty neighbours of an fcc atom would cut the third shell, 12 + 6 + 24, somewhere: all 42 stay."""
    graph = capped(graph_from_atoms(bulk("Cu", cubic=True), 6.0), 20)
    assert torch.bincount(graph.edge_index[1]).tolist() == [42] * 4


def test_no_cap_and_no_atoms_are_ordinary() -> None:
    graph = graph_from_atoms(rattled(), 4.0)
    assert capped(graph, None) is graph
    assert capped(graph_from_atoms(Atoms(), 4.0), 3).edge_vector.shape == (0, 3)


def test_a_potential_sees_what_the_cut_graph_holds() -> None:
    """Energies and forces are those of the model on a graph cut by hand; edges beyond have no force."""
    atoms = rattled()
    graph = graph_from_atoms(atoms, CAPPED.cutoff)
    kept = by_hand(graph, 6)
    assert len(kept) < graph.edge_vector.shape[0]
    cut = graph._replace(edge_index=graph.edge_index[:, kept], edge_vector=graph.edge_vector[kept])
    model, found = tiny_model(CAPPED), potential().evaluate(graph)
    energies, edge_forces = model.run(cut)
    torch.testing.assert_close(found.energies, energies, rtol=0, atol=0)
    torch.testing.assert_close(found.edge_forces[kept], edge_forces, rtol=0, atol=0)
    torch.testing.assert_close(forces(found.edge_forces, graph), forces(edge_forces, cut), rtol=0, atol=1e-12)
    assert (found.energies - tiny_model()(graph)).abs().max() > 1e-3


def test_forces_are_the_slope_between_two_jumps() -> None:
    atoms, h = rattled(), 1e-5
    found = potential()

    def total(step: float) -> float:
        moved = atoms.copy()
        moved.positions[2, 1] += step
        graph = graph_from_atoms(moved, CAPPED.cutoff)
        return float(energy(found.evaluate(graph).energies, graph))

    graph = graph_from_atoms(atoms, CAPPED.cutoff)
    force = float(forces(found.evaluate(graph).edge_forces, graph)[2, 1])
    assert force == pytest.approx(-(total(h) - total(-h)) / (2 * h), rel=1e-6)


def test_energy_per_atom_of_supercells_of_a_perfect_crystal() -> None:
    found = potential()
    perfect = bulk("Si", "diamond", 5.43)
    per_atom = [
        float(found.evaluate(graph_from_atoms(perfect * repeats, CAPPED.cutoff)).energies.mean())
        for repeats in ((1, 1, 1), (2, 2, 2), (3, 1, 1))
    ]
    assert np.ptp(per_atom) < 1e-10


def test_several_ranks_and_senseless_caps_are_refused() -> None:
    graph = graph_from_atoms(rattled(), CAPPED.cutoff)
    ghosts = graph._replace(owned=graph.numbers == 14)

    class Handler:
        forward = adjoint = staticmethod(torch.clone)

    for handler in (None, Handler()):
        with pytest.raises(UserError, match="a model with a neighbour cap runs on one rank"):
            potential().evaluate(ghosts, handler)
    assert exchange(graph.edge_vector).shape == graph.edge_vector.shape  # no handler is left behind
    with pytest.raises(UserError, match="max_neighbours must be at least 1, or null"):
        Model(dataclasses.replace(TINY, max_neighbours=0))


def test_a_capped_model_says_that_it_is_not_smooth() -> None:
    facts = tiny_model(CAPPED).facts()
    assert (facts.smooth, facts.max_neighbours) == (False, 6)
    assert tiny_model().facts().smooth
