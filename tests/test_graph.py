"""Graphs against ASE's own neighbour list, and the door that refuses bad structures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, graphene, molecule
from ase.neighborlist import neighbor_list

from triforces_deploy.errors import UserError
from triforces_deploy.graph import collate
from triforces_deploy.neighbours import CachedNeighbours, graph_from_atoms

CASES = {
    "crystal": bulk("Si", "diamond", 5.43, cubic=True),
    "primitive, smaller than the cutoff": bulk("Cu", "fcc", 3.6),
    "one atom a cell": bulk("Po", "sc", 2.2),
    "triclinic": bulk("Si", "diamond", 5.43).repeat((3, 1, 2)),
    "molecule": molecule("C6H6"),
    "slab": graphene(vacuum=4.0),
    "wire": Atoms("AuAu", [(0, 0, 0), (1.3, 0.4, 0)], cell=(3.0, 0, 0), pbc=(True, False, False)),
    "far outside its cell": Atoms("NaCl", [(40.0, -33.0, 7.0), (41.5, -31.0, 7.7)], cell=(4, 4, 4), pbc=True),
}


@pytest.mark.parametrize("cutoff", [2.9, 6.0])
@pytest.mark.parametrize("name", CASES)
def test_edges_are_ases(name: str, cutoff: float) -> None:
    atoms = CASES[name].copy()
    atoms.rattle(0.02, seed=3)
    graph = graph_from_atoms(atoms, cutoff)
    i, j, vector = neighbor_list("ijD", atoms, cutoff)
    ours = np.column_stack([graph.edge_index[1], graph.edge_index[0], graph.edge_vector])
    theirs = np.column_stack([i, j, vector])
    assert ours.shape == theirs.shape
    order = [np.lexsort(np.round(x, 6).T) for x in (ours, theirs)]
    np.testing.assert_allclose(ours[order[0]], theirs[order[1]], atol=1e-12)
    assert (np.diff(graph.edge_index[1]) >= 0).all()
    assert graph.composition.sum() == len(atoms)


@pytest.mark.parametrize("name", ["triclinic", "molecule", "slab"])
def test_a_cached_list_is_a_fresh_list(name: str) -> None:
    atoms, rng = CASES[name].copy(), np.random.default_rng(0)
    cached = CachedNeighbours(4.0, 0.6)
    for _ in range(8):
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        fresh, kept = graph_from_atoms(atoms, 4.0), cached.graph(atoms)
        assert fresh.edge_vector.shape == kept.edge_vector.shape
        for graph_sum in (lambda g: g.edge_vector.square().sum(), lambda g: g.edge_index.double().prod(0).sum()):
            torch.testing.assert_close(graph_sum(fresh), graph_sum(kept), rtol=1e-12, atol=0)


def test_a_batch_holds_its_structures_unchanged() -> None:
    graphs = [graph_from_atoms(CASES[name], 4.0) for name in ("crystal", "molecule", "one atom a cell")]
    batch = collate(graphs)
    for k, graph in enumerate(graphs):
        mine = batch.batch[batch.edge_index[1]] == k
        start = int((batch.batch < k).sum())
        assert torch.equal(batch.edge_vector[mine], graph.edge_vector)
        assert torch.equal(batch.edge_index[:, mine] - start, graph.edge_index)
        assert torch.equal(batch.composition[k], graph.composition[0])


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (Atoms("H2", [(0, 0, 0), (0, 0, np.nan)]), "NaN"),
        (Atoms("H2", [(0, 0, 0), (0, 0, 1e-3)]), "atoms . and . are 0.001 Å apart"),
        (Atoms("H", pbc=True), "cell vector 0 is zero"),
        (Atoms("H", cell=[(2, 0, 0), (4, 0, 0), (0, 0, 2)], pbc=True), "linearly dependent"),
    ],
)
def test_impossible_structures_are_refused(atoms: Atoms, message: str) -> None:
    with pytest.raises(UserError, match=message):
        graph_from_atoms(atoms, 3.0)
