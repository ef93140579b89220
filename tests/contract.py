"""What every backbone promises, as checks that its author can run: ``check_backbone("my_backbone", small_sizes)``.

Each check alone takes a :class:`Subject`; ``check_split`` of tests/ranks.py serves whole models too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from numpy.typing import NDArray
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from tests.ranks import Counter, check_split, deviation
from triforces_deploy import exchange
from triforces_deploy.backbones.base import Backbone
from triforces_deploy.backbones.table import backbone_class
from triforces_deploy.config import read
from triforces_deploy.derivatives import evaluate, forces, virial
from triforces_deploy.graph import Graph, collate
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.nn import blocks

CUTOFF = 4.0
NUMBERS = (1, 6, 8, 14, 29)
"""Elements of all structures below."""


class Subject:
    """A backbone in float64 with random weights, and a smooth, nonlinear, random readout that makes energies of it."""

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        cls = backbone_class(name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.backbone: Backbone = cls(read(cls.Config, options, name), CUTOFF, NUMBERS).double().eval()
            self.weights = torch.randn(2, self.backbone.width, dtype=torch.float64) / self.backbone.width
        self.backbone.requires_grad_(False)

    def __call__(self, graph: Graph) -> Tensor:
        features = self.backbone(graph)
        return features @ self.weights[0] + features.square() @ self.weights[1]

    def energies(self, atoms: Atoms) -> NDArray[np.float64]:
        return self(graph_from_atoms(atoms, CUTOFF)).numpy()


def crystal() -> Atoms:
    """Eight atoms of two elements in a skewed cell whose edges are about the cutoff; every atom is its own neighbour."""
    atoms = bulk("SiC", "zincblende", a=4.36) * (2, 2, 1)
    atoms.set_cell(atoms.cell.array @ np.array([[1.0, 0.05, 0.02], [0.0, 1.02, -0.04], [0.03, 0.0, 0.97]]), scale_atoms=True)
    atoms.positions += np.random.default_rng(0).normal(scale=0.08, size=atoms.positions.shape)
    return atoms


def structures() -> dict[str, Atoms]:
    slab = crystal()
    slab.pbc = (True, True, False)
    return {"crystal": crystal(), "slab": slab, "molecule": molecule("CH3CH2OH"), "one-atom cell": bulk("Cu")}


def check_backbone(name: str, options: dict[str, Any]) -> None:
    """Run every check of ``CHECKS`` on the backbone of this name in backbones/table.py, built with small ``options``."""
    for check in CHECKS:
        check(Subject(name, options))


def check_facts(subject: Subject) -> None:
    """Every fact of backbones/base.py is declared, with its type."""
    b = subject.backbone
    for fact, kind in [(b.width, int), (b.n_exchanges, int), (b.cutoff, float), (b.receptive_field, float)]:
        assert type(fact) is kind
    for fact in (b.smooth, b.conservative, b.separable, b.bidirectional):
        assert type(fact) is bool
    assert b.width > 0
    assert b.n_exchanges >= 0
    assert b.cutoff == CUTOFF
    assert b.receptive_field >= b.cutoff


def check_shapes_and_precision(subject: Subject) -> None:
    for dtype in (torch.float32, torch.float64):
        subject.backbone.to(dtype)
        for atoms in structures().values():
            graph = graph_from_atoms(atoms, CUTOFF)
            before = [t.clone() for t in graph]
            features = subject.backbone(graph)
            assert features.shape == (len(atoms), subject.backbone.width)
            assert features.dtype == dtype
            assert torch.isfinite(features).all()
            assert all(torch.equal(a, b) for a, b in zip(before, graph, strict=True)), "the graph was written to"


def check_ordinary_empty_inputs(subject: Subject) -> None:
    """No atoms, no edges, one atom: values, derivatives and second derivatives of the right shape and finite."""
    for atoms in (Atoms(), Atoms("Si"), Atoms("SiC", positions=[[0, 0, 0], [0, 0, 3 * CUTOFF]]), bulk("Cu")):
        graph = graph_from_atoms(atoms, CUTOFF)
        energies, edge_forces = evaluate(subject, graph, create_graph=True)
        assert energies.shape == (len(atoms),)
        assert edge_forces.shape == graph.edge_vector.shape
        assert torch.isfinite(energies).all()
        assert torch.isfinite(edge_forces).all()


def check_batching(subject: Subject) -> None:
    graphs = [graph_from_atoms(atoms, CUTOFF) for atoms in [*structures().values(), Atoms("Si")]]
    together = evaluate(subject, collate(graphs))
    apart = [evaluate(subject, graph) for graph in graphs]
    torch.testing.assert_close(together.energies, torch.cat([e.energies for e in apart]), rtol=0, atol=1e-12)
    torch.testing.assert_close(together.edge_forces, torch.cat([e.edge_forces for e in apart]), rtol=0, atol=1e-12)


def check_permutation(subject: Subject) -> None:
    atoms = crystal()
    order = np.random.default_rng(1).permutation(len(atoms))
    np.testing.assert_allclose(subject.energies(atoms[order]), subject.energies(atoms)[order], rtol=0, atol=1e-12)


def check_translation(subject: Subject) -> None:
    """A shift of everything, and of single atoms by lattice vectors."""
    atoms = crystal()
    moved = atoms.copy()
    moved.positions += [0.3, -1.7, 2.2]
    moved.positions[2] += atoms.cell.array[0] - 2 * atoms.cell.array[2]
    moved.positions[5] -= atoms.cell.array[1]
    np.testing.assert_allclose(subject.energies(moved), subject.energies(atoms), rtol=0, atol=1e-11)


def check_supercells(subject: Subject) -> None:
    atoms = crystal()
    expected = subject.energies(atoms).mean()
    for repeats in ((2, 2, 2), (3, 1, 1)):
        assert abs(subject.energies(atoms * repeats).mean() - expected) <= 1e-10


def check_separability(subject: Subject) -> None:
    if not subject.backbone.separable:
        return
    first, second = molecule("H2O"), molecule("CH4")
    second.positions += 2 * subject.backbone.receptive_field
    apart = np.concatenate([subject.energies(first), subject.energies(second)])
    np.testing.assert_allclose(subject.energies(first + second), apart, rtol=0, atol=1e-12)


def check_receptive_field(subject: Subject) -> None:
    """On a chain of nearest neighbours, an atom feels the bond that ends at the last hop and none beyond."""
    hops = round(subject.backbone.receptive_field / CUTOFF)
    chain = Atoms("Si" * (hops + 3), positions=[[0.6 * CUTOFF * k, 0, 0] for k in range(hops + 3)])
    graph = graph_from_atoms(chain, CUTOFF)
    edge_forces = evaluate(lambda g: subject(g) * (torch.arange(hops + 3) == 0), graph).edge_forces.abs().sum(1)
    end = graph.edge_index.amax(0)  # edges come in chain order: bond k joins atoms k − 1 and k
    assert edge_forces[end > hops].max() == 0.0
    assert edge_forces[end == hops].max() > 0.0


def check_finite_differences(subject: Subject) -> None:
    """Forces and virial against central differences of the energy along random displacements and strains."""
    for atoms in (crystal(), molecule("CH3CH2OH")):
        graph = graph_from_atoms(atoms, CUTOFF)
        edge_forces = evaluate(subject, graph).edge_forces
        found_forces, found_virial = forces(edge_forces, graph).numpy(), virial(edge_forces, graph)[0].numpy()
        rng = np.random.default_rng(2)
        for _ in range(3):
            displacement = rng.normal(size=atoms.positions.shape)
            strain = rng.normal(size=(3, 3))
            strain += strain.T
            expected = -_slope(lambda t, d=displacement, a=atoms: subject.energies(_displaced(a, t * d)).sum())
            assert np.sum(found_forces * displacement) == _near(expected, np.abs(found_forces).max())
            expected = _slope(lambda t, s=strain, a=atoms: subject.energies(_strained(a, t * s)).sum())
            assert np.sum(found_virial * strain) == _near(expected, np.abs(found_virial).max())


def check_smoothness(subject: Subject) -> None:
    """What a third atom adds within ε of the cutoff must fall like ε³ or faster, and its force like ε²."""
    if not subject.backbone.smooth:
        return

    def approach(gap: float) -> tuple[float, float]:
        atoms = Atoms("SiCSi", positions=[[0, 0, 0], [0, 1.6, 1.0], [0, 0, gap - CUTOFF]])
        graph = graph_from_atoms(atoms, CUTOFF)
        energies, edge_forces = evaluate(subject, graph)
        return float(energies.sum()), float(forces(edge_forces, graph)[2, 2])

    outside, no_force = approach(-1e-6)
    assert no_force == 0.0
    (near_energy, near_force), (far_energy, far_force) = approach(0.01), approach(0.02)
    assert abs(far_energy - outside) > 0.0
    assert abs(far_energy - outside) > 6.5 * abs(near_energy - outside)
    assert abs(far_force) > 3.3 * abs(near_force)


def check_exchange_calls(subject: Subject) -> None:
    """The declared number of exchanges, forward and backward, for every structure and for none."""
    for atoms in (crystal(), Atoms("Si"), Atoms()):
        counter = Counter()
        with exchange.using(counter):
            evaluate(subject, graph_from_atoms(atoms, CUTOFF))
        expected = subject.backbone.n_exchanges
        assert (counter.forwards, counter.adjoints) == (expected, expected)


def check_ranks(subject: Subject) -> None:
    """Several ranks give the numbers of one; the declared need for mirrored edges is neither too weak nor too strong."""
    atoms = crystal() * (2, 1, 1)
    bidirectional = subject.backbone.bidirectional
    check_split(subject, atoms, CUTOFF, bidirectional)
    if bidirectional:
        assert deviation(subject, atoms, CUTOFF, False, communicate=True) > 1e-6, "declared bidirectional but is not"


def check_blocks(subject: Subject) -> None:
    """Evaluation in small blocks, of which nothing or all is kept, and layer by layer: the same numbers."""
    graph = collate([graph_from_atoms(crystal() * (2, 1, 1), CUTOFF), graph_from_atoms(Atoms("Si"), CUTOFF)])
    expected = evaluate(subject, graph)
    with patch.object(blocks, "BLOCK_BYTES", 1):
        for memory in (blocks.using(0), blocks.using(10**12), blocks.keeping_nothing()):
            with memory:
                found = evaluate(subject, graph)
            for new, old in zip(found, expected, strict=True):
                torch.testing.assert_close(new, old, rtol=1e-11, atol=1e-13)


def check_capture(subject: Subject) -> None:
    """One flat graph of tensor operations, recorded from one structure, gives the numbers of others, also of none."""
    example = collate([graph_from_atoms(crystal(), CUTOFF), graph_from_atoms(molecule("CH4"), CUTOFF)])

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(evaluate(subject, Graph(*tensors)))

    with torch.no_grad():
        module = make_fx(flat, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*example)
    for atoms in (*structures().values(), Atoms("Si"), Atoms()):
        graph = graph_from_atoms(atoms, CUTOFF)
        for new, old in zip(module(*graph), evaluate(subject, graph), strict=True):
            torch.testing.assert_close(new, old, rtol=1e-12, atol=1e-13)


def _displaced(atoms: Atoms, displacement: NDArray[np.float64]) -> Atoms:
    moved = atoms.copy()
    moved.positions += displacement
    return moved


def _strained(atoms: Atoms, strain: NDArray[np.float64]) -> Atoms:
    """Positions and cell by 1 + strain."""
    deformed = atoms.copy()
    deformation = np.eye(3) + strain
    deformed.set_cell(atoms.cell.array @ deformation.T)
    deformed.positions = atoms.positions @ deformation.T
    return deformed


def _slope(function: Callable[[float], float]) -> float:
    """The derivative at 0 by central differences of fourth order."""
    h = 2e-4
    return (8 * (function(h) - function(-h)) - (function(2 * h) - function(-2 * h))) / (12 * h)


def _near(expected: float, scale: float) -> Any:
    return pytest.approx(expected, rel=1e-7, abs=1e-7 * scale)


CHECKS: tuple[Callable[[Subject], None], ...] = (
    check_facts,
    check_shapes_and_precision,
    check_ordinary_empty_inputs,
    check_batching,
    check_permutation,
    check_translation,
    check_supercells,
    check_separability,
    check_receptive_field,
    check_finite_differences,
    check_smoothness,
    check_exchange_calls,
    check_ranks,
    check_blocks,
    check_capture,
)
