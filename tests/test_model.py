"""The whole model: derivatives against finite differences, symmetries, supercells, ranks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, graphene, molecule

from tests.tiny import TINY, tiny_model
from triforces_deploy import derivatives
from triforces_deploy.errors import UserError
from triforces_deploy.model import Model
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.potential import Potential


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


def energy(model: Model, atoms: Atoms) -> float:
    return float(model(graph_from_atoms(atoms, TINY.cutoff)).sum())


def crystal(pbc: tuple[bool, bool, bool] = (True, True, True)) -> Atoms:
    atoms = bulk("Si", "diamond", 5.43, cubic=True)
    atoms.symbols = "Si5Ge3"
    atoms.rattle(0.1, seed=2)
    atoms.pbc = pbc
    return atoms


def triclinic() -> Atoms:
    atoms = bulk("Si", "diamond", 5.43).repeat((1, 2, 2))
    atoms.symbols = "Si6Ge2"
    atoms.rattle(0.1, seed=4)
    return atoms


STRUCTURES = {
    "crystal": crystal(),
    "triclinic": triclinic(),
    "slab": crystal((True, True, False)),
    "molecule": crystal((False,) * 3),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_forces_are_minus_the_derivative_of_the_energy(model: Model, name: str) -> None:
    atoms = STRUCTURES[name]
    graph = graph_from_atoms(atoms, TINY.cutoff)
    forces = derivatives.forces(derivatives.evaluate(model, graph).edge_forces, graph)
    h = 1e-4
    for atom, axis in [(0, 0), (3, 1), (7, 2)]:
        energies = []
        for step in (-2, -1, 1, 2):
            moved = atoms.copy()
            moved.positions[atom, axis] += step * h
            energies.append(energy(model, moved))
        slope = (energies[0] - 8 * energies[1] + 8 * energies[2] - energies[3]) / (12 * h)
        assert float(forces[atom, axis]) == pytest.approx(-slope, rel=1e-7, abs=1e-8)
    assert forces.sum(0).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["crystal", "triclinic"])
def test_stress_is_the_derivative_by_strain(model: Model, name: str) -> None:
    atoms = STRUCTURES[name]
    graph = graph_from_atoms(atoms, TINY.cutoff)
    stress = derivatives.stress(derivatives.evaluate(model, graph).edge_forces, graph)[0]
    h = 1e-4
    for a, b in [(0, 0), (2, 2), (0, 1), (1, 2)]:
        energies = []
        for step in (-2, -1, 1, 2):
            strain = np.zeros((3, 3))
            strain[a, b] += step * h / 2
            strain[b, a] += step * h / 2
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            energies.append(energy(model, strained))
        slope = (energies[0] - 8 * energies[1] + 8 * energies[2] - energies[3]) / (12 * h)
        assert float(stress[a, b]) == pytest.approx(slope / atoms.get_volume(), rel=1e-6, abs=1e-9)


def test_energy_per_atom_of_supercells(model: Model) -> None:
    for atoms in (crystal(), triclinic()):
        per_atom = energy(model, atoms) / len(atoms)
        for repeats in ((2, 2, 2), (3, 1, 1)):
            assert abs(energy(model, atoms.repeat(repeats)) / (len(atoms) * np.prod(repeats)) - per_atom) < 1e-10


def test_permutation_translation_and_another_cell_change_nothing(model: Model) -> None:
    atoms = crystal()
    reference = energy(model, atoms)
    moved = atoms.copy()
    moved.positions += (0.37, -11.1, 2.2)
    wrapped = moved.copy()
    wrapped.wrap()
    skewed = atoms.copy()
    skewed.cell = atoms.cell.array + np.outer([1, 0, 0], atoms.cell.array[1])
    for same in (atoms[[3, 1, 7, 0, 2, 6, 5, 4]], moved, wrapped, skewed):
        assert abs(energy(model, same) - reference) / len(atoms) < 1e-10


def test_far_apart_structures_add_up_when_composition_is_the_same(model: Model) -> None:
    one = crystal((False,) * 3)
    two = one.copy()
    two.positions += 50.0
    assert energy(model, one + two) == pytest.approx(2 * energy(model, one), abs=1e-10)


@pytest.mark.parametrize("stream", ["composition", "structure", "zbl"])
def test_every_stream_changes_the_energy(model: Model, stream: str) -> None:
    """Otherwise the tests above would say nothing of it."""
    off = dataclasses.replace(TINY, **{stream: False if stream == "zbl" else None})
    atoms = crystal()
    atoms.positions[1] = atoms.positions[0] + (1.4, 0.2, 0.1)
    torch.manual_seed(0)
    assert abs(energy(tiny_model(off), atoms) - energy(model, atoms)) > 1e-3


def test_isolated_atoms_have_finite_energies_and_no_forces(model: Model) -> None:
    graph = graph_from_atoms(Atoms("SiGe", [(0, 0, 0), (30, 0, 0)]), TINY.cutoff)
    result = derivatives.evaluate(model, graph)
    assert torch.isfinite(result.energies).all()
    assert result.edge_forces.shape == (0, 3)


def test_zbl_carries_atoms_apart(model: Model) -> None:
    close = Atoms("Si2", [(0, 0, 0), (0.4, 0, 0)])
    graph = graph_from_atoms(close, TINY.cutoff)
    assert derivatives.forces(derivatives.evaluate(model, graph).edge_forces, graph)[0, 0] < -50


def test_embeddings_have_names_and_widths(model: Model) -> None:
    shapes = {k: tuple(v.shape) for k, v in model.embeddings(graph_from_atoms(crystal(), TINY.cutoff)).items()}
    assert shapes == {"composition": (8, 16), "structure": (8, 16), "interaction": (8, 16)}


def test_unknown_elements_and_ghosts_without_exchange_are_refused(model: Model) -> None:
    potential = Potential(model.facts(), lambda g: derivatives.evaluate(model, g), "eager")
    with pytest.raises(UserError, match="element C, H: the model was trained for Si, Ge only"):
        potential.evaluate(graph_from_atoms(molecule("C6H6"), TINY.cutoff))
    graph = graph_from_atoms(crystal(), TINY.cutoff)
    graph.owned[3] = False
    with pytest.raises(UserError, match="no exchange is installed"):
        potential.evaluate(graph)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"elements": ()}, "elements is empty"),
        ({"elements": ("Si", "Si")}, "twice"),
        ({"elements": ("Si", "Gee")}, "'Gee' is no chemical symbol.*did you mean 'Ge'"),
        ({"cutoff": -1.0}, "positive"),
        ({"backbone": dataclasses.replace(TINY.backbone, name="orb")}, "unknown backbone 'orb'; known: esen, mace, orb_v3"),
        ({"backbone": dataclasses.replace(TINY.backbone, options={"latnt": 3})}, "did you mean 'latent'"),
    ],
)
def test_wrong_configurations_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Model(dataclasses.replace(TINY, **change))


def test_a_graphene_sheet_is_an_ordinary_input() -> None:
    carbon = tiny_model(dataclasses.replace(TINY, elements=("C",)))
    sheet = graphene(vacuum=10.0)
    assert energy(carbon, sheet.repeat((2, 2, 1))) == pytest.approx(4 * energy(carbon, sheet), abs=1e-10)
