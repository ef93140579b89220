"""Repulsion laid over a model that was trained without it: LAMMPS' own below, the model alone above, smooth between."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.data import covalent_radii

from tests.test_zbl import dimer, lammps_dimers
from tests.tiny import TINY, tiny_model
from triforces_deploy import artifact, checkpoint
from triforces_deploy.config import ModelConfig, ZBLSwitch
from triforces_deploy.contents import Artifact
from triforces_deploy.derivatives import evaluate, forces
from triforces_deploy.errors import UserError
from triforces_deploy.export.certify.dimers import hole
from triforces_deploy.export.exporting import ExportOptions, export
from triforces_deploy.model import Model
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.nn import blocks
from triforces_deploy.nn.zbl import Overlay
from triforces_deploy.potential import Potential

PLAIN = dataclasses.replace(TINY, zbl=False)
SWITCHES = (ZBLSwitch("Si", "Si", 1.3, 2.0), ZBLSwitch("Si", "Ge", 1.35, 2.05), ZBLSwitch("Ge", "Ge", 1.4, 2.1))
SHORTEST = {"Si-Si": 2.057, "Si-Ge": 2.134, "Ge-Ge": 3.31}
"""Å, of training; germanium was never bonded to germanium there."""


@pytest.fixture(scope="module")
def plain() -> Model:
    return tiny_model(PLAIN)


@pytest.fixture(scope="module")
def overlaid(plain: Model) -> Model:
    model = Model(dataclasses.replace(PLAIN, zbl_overlay=SWITCHES))
    model.set_network_dtype(torch.float64)
    model.load_state_dict(plain.state_dict())
    return model.eval().requires_grad_(False)


def energy(model: Model, atoms: Atoms) -> float:
    return float(model(graph_from_atoms(atoms, TINY.cutoff)).sum())


def crowded(seed: int = 2) -> Atoms:
    """Every atom has several neighbours inside the switching range, at distances of all kinds."""
    atoms = bulk("Si", "diamond", 5.43 * 0.72, cubic=True)
    atoms.symbols[::3] = "Ge"
    atoms.rattle(0.12, seed=seed)
    return atoms


@pytest.mark.parametrize(("numbers", "inner"), [((14, 14), 1.3), ((14, 32), 1.35), ((32, 32), 1.4)])
def test_below_the_inner_distance_there_is_lammps_own_repulsion_alone(
    plain: Model, overlaid: Model, numbers: tuple[int, int], inner: float
) -> None:
    distances = [0.5, 0.8, 1.1, inner - 1e-3]
    energies, pulls = lammps_dimers(numbers, distances)
    found, pushed = [], []
    for r in distances:
        graph = graph_from_atoms(dimer(numbers, r), TINY.cutoff)
        found.append(energy(overlaid, dimer(numbers, r)) - float(plain.references[graph.numbers].sum()))
        push = forces(evaluate(overlaid, graph).edge_forces, graph)[1]
        pushed.append(float(push @ torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)))
    np.testing.assert_allclose(pushed, pulls, rtol=1e-9)
    np.testing.assert_allclose(np.diff(found), np.diff(energies), rtol=1e-9)  # LAMMPS adds a constant


def test_at_the_distances_of_training_the_model_keeps_every_bit(plain: Model, overlaid: Model) -> None:
    atoms = bulk("Si", "diamond", 5.43, cubic=True).repeat((2, 1, 1))
    atoms.symbols[::3] = "Ge"
    atoms.rattle(0.05, seed=3)
    graph = graph_from_atoms(atoms, TINY.cutoff)
    assert float(torch.linalg.vector_norm(graph.edge_vector, dim=1).min()) > 2.1
    (new, new_forces), (old, old_forces) = overlaid.run(graph), plain.run(graph)
    assert torch.equal(new, old)
    assert torch.equal(new_forces, old_forces)


def test_forces_are_derivatives_where_the_two_mix(overlaid: Model) -> None:
    atoms = crowded()
    graph = graph_from_atoms(atoms, TINY.cutoff)
    lengths = torch.linalg.vector_norm(graph.edge_vector, dim=1)
    assert int(((lengths > 1.3) & (lengths < 2.1)).sum()) > 20
    found = forces(evaluate(overlaid, graph).edge_forces, graph).numpy()
    step, rng = 1e-5, np.random.default_rng(0)
    for _ in range(8):
        direction = rng.normal(size=found.shape)
        sides = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions += sign * step * direction
            sides.append(energy(overlaid, moved))
        expected = -(sides[0] - sides[1]) / (2 * step)
        assert float((found * direction).sum()) == pytest.approx(expected, rel=1e-6, abs=1e-5)


def test_two_derivatives_are_continuous_at_both_ends(overlaid: Model) -> None:
    """Exact second derivatives on either side; the third jumps, so what is left goes with the step."""

    def curvature(r: float) -> float:
        graph = graph_from_atoms(dimer((14, 14), r), TINY.cutoff)
        s = torch.ones((), dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            total = overlaid(graph._replace(edge_vector=graph.edge_vector * s)).sum()
            (slope,) = torch.autograd.grad(total, s, create_graph=True)
            (second,) = torch.autograd.grad(slope, s)
        return float(second) / r**2

    middle = abs(curvature(1.65) - curvature(1.95))
    for end in (1.3, 2.0):
        jumps = [abs(curvature(end + step) - curvature(end - step)) for step in (1e-4, 1e-6)]
        assert jumps[1] < 2e-2 * jumps[0] + 1e-6
        assert jumps[1] < 1e-3 * middle


def test_two_atoms_are_repelled_all_the_way_in() -> None:
    """Also where the model itself pulls them together, here by 27 eV."""
    overlay, radii = Overlay(SWITCHES, TINY.cutoff), float(covalent_radii[14] + covalent_radii[32])
    x = np.linspace(0.5, 3.9, 300)
    faded = []
    for r in x:
        own = torch.full((2,), -30.0 * np.exp(-r), dtype=torch.float64)
        faded.append(float(overlay(own, graph_from_atoms(dimer((14, 32), float(r)), TINY.cutoff)).sum()))
    assert hole(x, -60.0 * np.exp(-x), radii) > 25.0
    assert hole(x, np.array(faded), radii) < 0.05


def test_in_blocks_it_is_the_same(overlaid: Model) -> None:
    graph = graph_from_atoms(crowded().repeat((2, 2, 2)), TINY.cutoff)
    expected = overlaid.run(graph)
    with blocks.using(1 << 20):
        found = overlaid.run(graph)
    for new, old in zip(found, expected, strict=True):
        torch.testing.assert_close(new, old, rtol=1e-11, atol=1e-10)


def test_nothing_and_one_atom_are_ordinary(overlaid: Model) -> None:
    assert overlaid(graph_from_atoms(Atoms(), TINY.cutoff)).shape == (0,)
    assert torch.isfinite(overlaid(graph_from_atoms(Atoms("Ge"), TINY.cutoff))).all()


# -- at export ---------------------------------------------------------------------------------------------------------------


class Made:
    def __init__(self, folder: Path) -> None:
        self.source, self.out = folder / "a.ckpt", folder / "a.pt"

    def export(self, zbl: str, config: ModelConfig = PLAIN, **provenance: Any) -> tuple[Potential, Artifact]:
        checkpoint.save(self.source, tiny_model(config), provenance)
        made = export(self.source, self.out, ExportOptions(backends=(), zbl=zbl))
        return artifact.load(self.out), made

    def refused(self, message: str, zbl: str, config: ModelConfig = PLAIN, **provenance: Any) -> None:
        with pytest.raises(UserError, match=message) as error:
            self.export(zbl, config, **provenance)
        assert "\n" not in str(error.value)
        assert not self.out.exists()


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def line(file: Artifact) -> str:
    (found,) = (p for p in file.metadata.facts.policies if p.startswith("short range"))
    return found


def test_auto_ends_at_the_shortest_distances_of_training(made: Made) -> None:
    potential, file = made.export("auto", shortest_distances=SHORTEST)
    found = {(s.first, s.second): (s.inner, s.outer) for s in file.metadata.facts.zbl_overlay}
    assert found["Si", "Si"] == (1.43, 2.05)
    assert found["Si", "Ge"] == (1.49, 2.13)
    assert found["Ge", "Ge"][1] == pytest.approx(0.75 * 2 * covalent_radii[32], abs=0.01)
    assert "Si-Si 1.43/2.05" in line(file)
    assert "from the shortest distances in training; 0.75 sums of covalent radii for Ge-Ge" in line(file)
    graph = graph_from_atoms(dimer((14, 14), 0.7), TINY.cutoff)
    step = 1e-6
    _, pulls = lammps_dimers((14, 14), [0.7])
    near, far = (
        float(potential.evaluate(graph_from_atoms(dimer((14, 14), 0.7 + s), TINY.cutoff)).energies.sum()) for s in (-step, step)
    )
    assert (near - far) / (2 * step) == pytest.approx(pulls[0], rel=1e-6)
    assert torch.isfinite(potential.evaluate(graph).energies).all()


def test_without_statistics_the_radii_decide_and_the_line_says_so(made: Made) -> None:
    _, file = made.export("auto")
    assert "0.75 sums of covalent radii for any pair" in line(file)
    for switch, pair in zip(file.metadata.facts.zbl_overlay, (("Si", "Si"), ("Si", "Ge"), ("Ge", "Ge")), strict=True):
        assert (switch.first, switch.second) == pair


def test_it_ends_below_every_bond_that_training_saw(made: Made) -> None:
    """A quiet crystal is never compressed, so its shortest distance is too long to end at."""
    _, file = made.export("auto", shortest_distances={"Si-Si": 2.3})
    (silicon,) = (s for s in file.metadata.facts.zbl_overlay if s.first == s.second == "Si")
    assert silicon.outer == pytest.approx(0.95 * 2 * covalent_radii[14], abs=0.01)


def test_distances_of_the_user_hold_for_every_pair(made: Made) -> None:
    _, file = made.export("0.9,1.6", shortest_distances=SHORTEST)
    assert {(s.inner, s.outer) for s in file.metadata.facts.zbl_overlay} == {(0.9, 1.6)}
    assert len(file.metadata.facts.zbl_overlay) == 3
    assert "as asked" in line(file)


def test_what_cannot_be_overlaid_says_why(made: Made) -> None:
    made.refused("trained with the repulsion", "auto", TINY)
    made.refused(r"outer 2.25 Å is beyond 2.057 Å, the shortest Si-Si distance", "1.0,2.25", shortest_distances=SHORTEST)
    for bad in ("yes", "1.6,0.9", "1.0", "1,2,3", "nan,2", "1.0,9.0"):
        made.refused("expected auto, or INNER,OUTER", bad)


def test_a_file_whose_overlay_was_changed_is_refused(made: Made, tmp_path: Path) -> None:
    _, file = made.export("auto", shortest_distances=SHORTEST)
    facts = dataclasses.replace(file.metadata.facts, zbl_overlay=SWITCHES)
    forged = dataclasses.replace(file, metadata=dataclasses.replace(file.metadata, facts=facts))
    artifact.write(tmp_path / "forged.pt", forged)
    with pytest.raises(UserError, match="its zbl_overlay is not that of the model in it"):
        artifact.load(tmp_path / "forged.pt")


@pytest.mark.parametrize(
    "bad", [("Si", "Si", 2.0, 1.0), ("Si", "Xx", 1.0, 2.0), ("Si", "Si", 1.0, 9.0), ("Si", "Si", -1.0, 2.0)]
)
def test_switches_that_cannot_be_are_refused(bad: tuple[str, str, float, float]) -> None:
    with pytest.raises(UserError, match="zbl_overlay"):
        Model(dataclasses.replace(PLAIN, zbl_overlay=(ZBLSwitch(*bad),)))
