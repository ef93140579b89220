"""The self-contained ONNX form: its neighbour list against vesin's, its numbers against eager, its refusals."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, make_supercell

from triforces_deploy import artifact, derivatives, onnx_positions
from triforces_deploy.artifact import read_artifact
from triforces_deploy.errors import UserError
from triforces_deploy.export.certify import opening
from triforces_deploy.export.certify import parity as certify_parity
from triforces_deploy.export.constructor import construct
from triforces_deploy.export.probes import probe_structures
from triforces_deploy.export.verify import check, parity
from triforces_deploy.export.verify_positions import compare_positions
from triforces_deploy.graph import Graph
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.onnx_positions import PositionsModel, images_needed, inputs
from triforces_deploy.payloads.onnx import padded_table
from triforces_deploy.potential import Potential
from triforces_deploy.precision import PRECISIONS

CUTOFF = 4.0
IMAGES = 2
"""Of the fixture."""


def structures(seed: int = 9) -> dict[str, Atoms]:
    """Every periodicity, atoms outside their cell, no neighbour at all."""
    rng = np.random.default_rng(seed)
    outside = probe_structures(("Si", "Ge"), seed)["triclinic"]
    outside.positions += rng.integers(-3, 4, (len(outside), 3)) @ outside.cell.array
    skewed = make_supercell(bulk("Si", "diamond", 5.43), [[2, 0, 0], [3, 2, 0], [0, -2, 2]])
    skewed.rattle(0.1, seed=seed)
    wire = Atoms("Si2Ge", [(0, 0, 0), (2.2, 1, 0), (0.5, 3, 1.9)], cell=[(0, 0, 0), (0, 4.6, 1), (0, 0, 0)], pbc=(0, 1, 0))
    sheet = Atoms("SiGe", [(0, 0, 0), (1, 9, 2.1)], cell=[(3.5, 1, 0), (0, 20, 0), (2, 5, 4)], pbc=(1, 0, 1))
    far = Atoms("SiGe", [(0, 0, 0), (0, 0, 9.0)], pbc=False)
    return {
        **probe_structures(("Si", "Ge"), seed),
        "outside": outside,
        "skewed": skewed,
        "wire": wire,
        "sheet": sheet,
        "far": far,
    }


def edges(index: torch.Tensor, vector: torch.Tensor) -> list[tuple[float, ...]]:
    return sorted(map(tuple, np.concatenate([index.T.numpy(), np.round(vector.numpy(), 9) + 0.0], axis=1).tolist()))


@pytest.fixture(scope="module")
def model(onnx_artifact: Path) -> PositionsModel:
    return onnx_positions.load(onnx_artifact)


@pytest.mark.parametrize("cutoff", [4.0, 6.0])
def test_the_frozen_list_is_vesins(cutoff: float) -> None:
    for name, atoms in {**structures(), **{f"{k} again": v for k, v in structures(3).items()}}.items():
        found = construct(*(torch.from_numpy(a) for a in list(inputs(atoms).values())[:3]), cutoff, 3)
        graph = graph_from_atoms(atoms, cutoff)
        assert edges(found.edge_index, found.edge_vector) == edges(graph.edge_index, graph.edge_vector), name
        assert bool(found.valid), name
        neighbour, centre = found.edge_index
        assert torch.equal(found.edges_of_centre, padded_table(centre, len(atoms)))
        assert torch.equal(found.edges_of_neighbour, padded_table(neighbour, len(atoms)))


def test_the_images_that_are_asked_for_are_enough_and_needed() -> None:
    """With as many as the rule says the list is complete and valid; with one less it says that it is not."""
    tried = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        pbc = rng.random(3) < 0.7
        atoms = Atoms("Si2", rng.uniform(-5, 5, (2, 3)), cell=rng.normal(0, 2.5, (3, 3)) + 3 * np.eye(3), pbc=pbc)
        needed = max(images_needed(atoms.cell.array, atoms.pbc, CUTOFF))
        if needed > 6 or graph_from_atoms_fails(atoms):
            continue
        arguments = [torch.from_numpy(a) for a in list(inputs(atoms).values())[:3]]
        found, graph = construct(*arguments, CUTOFF, needed), graph_from_atoms(atoms, CUTOFF)
        assert edges(found.edge_index, found.edge_vector) == edges(graph.edge_index, graph.edge_vector)
        assert bool(found.valid)
        if needed > 0:
            tried += 1
            assert not bool(construct(*arguments, CUTOFF, needed - 1).valid)
    assert tried > 5


def graph_from_atoms_fails(atoms: Atoms) -> bool:
    try:
        graph_from_atoms(atoms, CUTOFF)
    except UserError:
        return True
    return False


def test_it_equals_eager_on_structures_of_every_periodicity(onnx_artifact: Path, model: PositionsModel) -> None:
    eager = artifact.load(onnx_artifact, "eager")
    chosen = {**structures(), "nothing": Atoms(), "larger": structures()["skewed"].repeat((2, 1, 3))}
    rows = compare_positions(model, eager, chosen)
    assert {r.structure for r in rows} == set(chosen)
    check(parity("onnx-positions", "eager", rows, PRECISIONS[model.facts.precision].parity))


def test_stress_and_energy_are_those_of_eager(onnx_artifact: Path, model: PositionsModel) -> None:
    eager, tolerance = artifact.load(onnx_artifact, "eager"), PRECISIONS[model.facts.precision].parity
    for name in ("triclinic", "primitive cell", "slab"):
        atoms = structures()[name]
        graph, result = graph_from_atoms(atoms, CUTOFF), model.evaluate(atoms)
        energies, edge_forces, *_ = eager.evaluate(graph)
        stress = derivatives.stress(edge_forces, graph)[0].numpy()
        np.testing.assert_allclose(result.stress, stress, rtol=tolerance, atol=tolerance * np.abs(stress).max())
        assert result.energy == pytest.approx(float(energies.sum()), rel=tolerance)
    assert np.isnan(model.evaluate(structures()["molecule"]).stress).all()


def test_the_same_bits_on_any_number_of_threads(model: PositionsModel) -> None:
    crystal = bulk("Si", "diamond", 5.43, cubic=True).repeat(3)
    crystal.symbols[::3] = "Ge"
    crystal.rattle(0.1, seed=1)
    threads, first = torch.get_num_threads(), model.evaluate(crystal)
    try:
        for n in (1, 2, 4):
            torch.set_num_threads(n)
            for _ in range(10):
                for old, new in zip(first, model.evaluate(crystal), strict=True):
                    np.testing.assert_array_equal(new, old)
    finally:
        torch.set_num_threads(threads)


def thin(height: float) -> Atoms:
    """A cell that needs floor(4/height + ½) images across."""
    return Atoms("Si", cell=(6.0, 6.0, height), pbc=True)


def test_a_cell_beyond_the_frozen_images_is_never_a_number(onnx_artifact: Path, model: PositionsModel) -> None:
    """Refused by the runner; NaN in every output for a program that has nothing but the graph."""
    assert read_artifact(onnx_artifact).metadata.payloads[1].details["images"] == model.images == IMAGES
    assert np.isfinite(model.evaluate(thin(4 / 2.45)).energy)
    with pytest.raises(UserError, match=r"needs 3 periodic images along axis 2, the frozen graph has 2; .* --images 3"):
        model.evaluate(thin(4 / 2.55))
    assert all(np.isnan(values).all() for values in model.unchecked(thin(4 / 2.55)))
    free = thin(4 / 2.55)
    free.pbc = (True, True, False)
    assert np.isfinite(model.evaluate(free).energy)


def test_other_mistakes_are_refused_and_never_numbers(model: PositionsModel) -> None:
    carbon = Atoms("SiC", [(0, 0, 0), (0, 0, 1.9)])
    overlapping = Atoms("Si2", [(0, 0, 0), (0, 0, 0.05)])
    flat = Atoms("Si", cell=[(3, 0, 0), (0, 3, 0), (3, 3, 0)], pbc=True)
    messages = {
        "element C: the frozen graph knows Si, Ge only": carbon,
        "atoms 0 and 1 are 0.05 Å apart|atoms 1 and 0 are 0.05 Å apart": overlapping,
        "linearly dependent": flat,
        "cell vector 2 is zero": Atoms("Si", cell=(5, 5, 0), pbc=True),
        "NaN": Atoms("Si", [(0, 0, float("nan"))]),
    }
    for message, atoms in messages.items():
        with pytest.raises(UserError, match=message):
            model.evaluate(atoms)
        assert all(np.isnan(values).all() for values in model.unchecked(atoms)), message


def test_verification_catches_a_graph_that_truncates(onnx_artifact: Path, model: PositionsModel) -> None:
    """A runner that claims fewer images than the graph has stands in for a graph without its guard."""
    content = read_artifact(onnx_artifact)
    info = next(p for p in content.metadata.payloads if p.backend == "onnx-positions")
    careless = PositionsModel(content.payloads["onnx-positions"], info, model.facts)
    careless.images = 0
    eager = artifact.load(onnx_artifact, "eager")
    with pytest.raises(UserError, match="gives an energy for 'thin', whose neighbours it does not all see"):
        compare_positions(careless, eager, {"thin": thin(3.0)})
    with pytest.raises(UserError, match="covers none of the structures"):
        compare_positions(model, eager, {"thinner": thin(1.0)})


def test_it_is_verified_at_export_and_asked_for_by_its_own_name(onnx_artifact: Path, tiny_artifact: Path) -> None:
    metadata = read_artifact(onnx_artifact).metadata
    measured = {p.backend: p for p in metadata.parity if p.reference == f"eager {metadata.facts.precision}"}
    assert measured["onnx-positions"].structures == measured["onnx"].structures == 6
    with pytest.raises(UserError, match=r"makes its own graph from positions; use triforces_deploy.onnx_positions.load"):
        artifact.load(onnx_artifact, "onnx-positions")
    with pytest.raises(UserError, match="holds no onnx-positions payload; make one with"):
        onnx_positions.load(tiny_artifact)


def test_the_certificate_compares_this_form_too(onnx_artifact: Path) -> None:
    """With itself as the truth it passes; with a truth that is 1e-6 larger it does not."""
    content = read_artifact(onnx_artifact)
    subject = opening.open_subject(content, onnx_artifact)
    structures = {name: subject.structures[name] for name in ("triclinic", "molecule", "cell below the cutoff")}
    subject = dataclasses.replace(subject, forms={}, structures=structures)
    names = [f"onnx-positions = eager: {q}" for q in ("energy", "energy of each atom", "forces", "stress")]

    def verdicts_of(reference: Potential) -> list[str]:
        found = {c.name: c.verdict for c in certify_parity.check(dataclasses.replace(subject, reference=reference)).checks}
        return [found[name] for name in names]

    def larger(graph: Graph) -> tuple[torch.Tensor, ...]:
        result = subject.reference.evaluate(graph)
        return result.energies * (1 + 1e-6), result.edge_forces * (1 + 1e-6)

    assert verdicts_of(subject.reference) == ["pass"] * 4
    assert verdicts_of(Potential(subject.facts, larger, "eager")) == ["fail"] * 4
