"""What export freezes, converts or refuses, each with numbers that the policy had no part in."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from tests.tiny import TINY, tiny_model
from triforces_deploy import artifact, checkpoint
from triforces_deploy.artifact import Artifact
from triforces_deploy.config import ModelConfig
from triforces_deploy.derivatives import forces, stress
from triforces_deploy.errors import UserError
from triforces_deploy.export.exporting import ExportOptions, export, reverify
from triforces_deploy.export.policies import parse_composition
from triforces_deploy.model import Model
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.potential import Potential
from triforces_deploy.streams.composition import CompositionTable

assert TINY.structure is not None
LATTICE = dataclasses.replace(TINY, structure=dataclasses.replace(TINY.structure, lattice=True))
MEAN = dataclasses.replace(TINY, readout="mean")
CAPPED = dataclasses.replace(TINY, max_neighbours=6)


def sige(symbols: str = "Si5Ge3", seed: int = 1) -> Atoms:
    atoms = bulk("Si", "diamond", 5.43, cubic=True)
    atoms.symbols = symbols
    atoms.rattle(0.1, seed=seed)
    return atoms


class Made:
    """A checkpoint with random weights, and its exports."""

    def __init__(self, folder: Path, config: ModelConfig, provenance: dict[str, Any]) -> None:
        self.model: Model = tiny_model(config)
        self.checkpoint, self.out = folder / "a.ckpt", folder / "a.pt"
        checkpoint.save(self.checkpoint, self.model, provenance)

    def export(self, **options: Any) -> tuple[Potential, Artifact]:
        made = export(self.checkpoint, self.out, ExportOptions(**{"backends": (), **options}))
        return artifact.load(self.out), made

    def refused(self, message: str, **options: Any) -> None:
        with pytest.raises(UserError, match=message) as error:
            self.export(**options)
        assert "\n" not in str(error.value)
        assert not self.out.exists()


@pytest.fixture
def make(tmp_path: Path) -> Any:
    def of(config: ModelConfig = TINY, **provenance: Any) -> Made:
        return Made(tmp_path, config, provenance)

    return of


def policy(made: Artifact, name: str) -> str:
    (line,) = (line for line in made.metadata.facts.policies if line.startswith(f"{name}:"))
    return line


def check_equal(found: Potential, expected: Model, atoms: Atoms, **seen: torch.Tensor) -> None:
    """Energies, forces and stress, the model being shown another composition or cell."""
    graph = graph_from_atoms(atoms, TINY.cutoff)
    result, (energies, edge_forces) = found.evaluate(graph), expected.run(graph._replace(**seen))
    torch.testing.assert_close(result.energies, energies, rtol=0, atol=1e-12)
    torch.testing.assert_close(forces(result.edge_forces, graph), forces(edge_forces, graph), rtol=0, atol=1e-12)
    torch.testing.assert_close(stress(result.edge_forces, graph), stress(edge_forces, graph), rtol=0, atol=1e-12)


def composition_of(**counts: float) -> torch.Tensor:
    return torch.zeros(1, 119, dtype=torch.float64).index_put(
        (torch.tensor([0]), torch.tensor([{"Si": 14, "Ge": 32}[k] for k in counts])),
        torch.tensor(list(counts.values())).double(),
    )


def test_a_composition_frozen_to_a_structure_is_a_table_and_no_transformer(make: Any) -> None:
    made = make()
    found, file = made.export(composition="frozen", structure=sige("Si6Ge2"))
    assert [k for k in file.weights if k.startswith("composition.")] == ["composition.vectors"]
    assert isinstance(artifact.rebuild(file).composition, CompositionTable)
    assert policy(file, "composition") == "composition: frozen to Si6 Ge2"
    for atoms in (sige("Si6Ge2"), sige("SiGe7"), sige()[:3]):
        check_equal(found, made.model, atoms, composition=composition_of(Si=3, Ge=1))


def test_a_composition_frozen_to_fractions(make: Any) -> None:
    made = make()
    found, file = made.export(composition="Si=0.7,Ge=0.3")
    assert found.facts.reference == pytest.approx({"Si": 0.7, "Ge": 0.3})
    assert policy(file, "composition") == "composition: frozen to Si0.7 Ge0.3"
    check_equal(found, made.model, sige(), composition=composition_of(Si=7, Ge=3))


def test_frozen_energies_add_up_whatever_the_fragments_are_made_of(make: Any) -> None:
    """Live, an atom of germanium far away changes the energy of silicon; frozen, it does not."""
    one, two = sige("Si8"), sige("Ge8", seed=2)
    one.pbc = two.pbc = False
    two.positions += 60.0
    excess = {}
    for policy_name in ("live", "Si=0.5,Ge=0.5"):
        found, _ = make().export(composition=policy_name)
        energies = [found.evaluate(graph_from_atoms(a, TINY.cutoff)).energies.sum() for a in (one + two, one, two)]
        excess[policy_name] = abs(float(energies[0] - energies[1] - energies[2]))
    assert excess["live"] > 1e-4
    assert excess["Si=0.5,Ge=0.5"] < 1e-10


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Si=0.7,Ge=0.3", {"Si": 0.7, "Ge": 0.3}), (" Si = 7 , Ge=3", {"Si": 0.7, "Ge": 0.3}), ("Si=1", {"Si": 1.0})],
)
def test_fractions_are_read(text: str, expected: dict[str, float]) -> None:
    assert parse_composition(text) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("text", ["forzen", "Si", "Si=", "Si=x", "Si=-1,Ge=2", "Si=0.5,Si=0.5", "Si=nan", "Si=inf", "", "Si=0"])
def test_what_is_no_composition_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="expected live, frozen, or fractions of each element"):
        parse_composition(text)


def test_compositions_that_cannot_be(make: Any) -> None:
    make().refused("the fractions add up to 0.8; expected 1", composition="Si=0.5,Ge=0.3")
    make().refused("--composition holds C, the model knows Si, Ge only", composition="Si=0.5,C=0.5")
    make().refused("--structure is read only with --composition frozen or --lattice frozen", structure=sige())
    bare = make(dataclasses.replace(TINY, composition=None))
    bare.refused("no composition stream, there is nothing to freeze", composition="Si=1")


def test_a_file_whose_frozen_composition_is_not_folded_still_runs(tmp_path: Path) -> None:
    """As earlier versions wrote them."""
    model = tiny_model()
    facts = dataclasses.replace(model.facts(), composition="frozen", reference={"Si": 3, "Ge": 1})
    check_equal(Potential(facts, model.run, "eager"), model, sige(), composition=composition_of(Si=3, Ge=1))


def test_a_lattice_frozen_to_a_cell_is_that_cell_for_ever(make: Any) -> None:
    """Equal to the live encoding at that cell; the same for supercells, in which the live one is not; no cell in it."""
    made, atoms = make(LATTICE), sige()
    found, file = made.export(lattice="frozen", structure=atoms)
    assert not any("lattice" in name for name in file.weights)
    assert policy(file, "lattice encoding").startswith("lattice encoding: frozen to the cell 5.43 5.43 5.43 90 90 90")
    check_equal(found, made.model, atoms)
    strained = atoms.copy()
    strained.set_cell(atoms.cell.array * 1.03, scale_atoms=True)
    check_equal(found, made.model, strained, cell=torch.from_numpy(atoms.cell.array)[None])
    (small, large), (live_small, live_large) = (
        [float(run(graph_from_atoms(a, TINY.cutoff)).sum() / len(a)) for a in (atoms, atoms * (2, 1, 1))]
        for run in (lambda g: found.evaluate(g).energies, made.model)
    )
    assert abs(small - large) < 1e-10
    assert abs(live_small - live_large) > 1e-4
    (again,) = reverify(
        file, "a.pt", made.checkpoint, {"large": atoms * (2, 1, 1), "free": Atoms("Si2", [(0, 0, 0), (2.3, 0, 0)])}
    )
    assert max(again.energy, again.forces, again.stress) < 1e-12


def test_stress_of_a_frozen_lattice_is_the_derivative_of_the_energy(make: Any) -> None:
    found, _ = make(LATTICE).export(lattice="frozen", structure=sige())
    atoms, h = sige(), 1e-4

    def energy(step: float) -> float:
        strained = atoms.copy()
        strained.set_cell(atoms.cell.array @ np.diag([1.0 + step, 1.0, 1.0]), scale_atoms=True)
        return float(found.evaluate(graph_from_atoms(strained, TINY.cutoff)).energies.sum())

    graph = graph_from_atoms(atoms, TINY.cutoff)
    expected = (8 * (energy(h) - energy(-h)) - (energy(2 * h) - energy(-2 * h))) / (12 * h) / atoms.get_volume()
    assert float(stress(found.evaluate(graph).edge_forces, graph)[0, 0, 0]) == pytest.approx(expected, rel=1e-7)


def test_lattices_that_cannot_be(make: Any) -> None:
    make(LATTICE).refused(
        "trained with a lattice encoding, without which its energies are others; freeze it with --lattice frozen"
    )
    make(LATTICE).refused("a live lattice encoding is refused: .* stress does not see", lattice="live")
    make(LATTICE).refused("--lattice frozen needs --structure FILE", lattice="frozen")
    make(LATTICE).refused("no cell with a volume", lattice="frozen", structure=Atoms("Si"))
    make().refused("--lattice frozen: this model has no lattice encoding", lattice="frozen", structure=sige())


def test_everything_frozen_in_one_precision_below(make: Any) -> None:
    """Folded in float64, then rounded: compiled form and eager agree with the unfolded model of the same precision."""
    options = {"composition": "frozen", "lattice": "frozen", "structure": sige()}
    shallow = {**LATTICE.backbone.options, "n_layers": 1}
    small = dataclasses.replace(LATTICE, backbone=dataclasses.replace(LATTICE.backbone, options=shallow))
    _, file = make(small).export(precision="float32", backends=("torchscript",), **options)
    worst = {(p.backend, p.reference): max(p.energy, p.forces, p.stress) for p in file.metadata.parity}
    assert set(worst) == {(b, f"eager {p}") for b in ("torchscript", "eager") for p in ("float32", "float64")}
    assert max(v for (_, reference), v in worst.items() if reference == "eager float32") <= 1e-5


def test_a_capped_model_is_refused_or_marked(make: Any) -> None:
    make(CAPPED).refused("nearest 6 neighbours only: its energy jumps .* --keep-cap")
    make().refused("--keep-cap: this model has no neighbour cap", keep_cap=True)
    make(CAPPED).refused("onnx-positions makes its own neighbour list", keep_cap=True, backends=("onnx-positions",))
    found, file = make(CAPPED).export(keep_cap=True)
    assert (found.facts.smooth, found.facts.max_neighbours) == (False, 6)
    assert "NOT SMOOTH" in policy(file, "graph")
    graph = graph_from_atoms(sige(), TINY.cutoff)
    distance = graph.edge_vector.norm(dim=1)
    kept = [  # random positions have no ties
        e
        for i in range(8)
        for e in sorted(torch.nonzero(graph.edge_index[1] == i)[:, 0].tolist(), key=distance.__getitem__)[:6]
    ]
    cut = graph._replace(edge_index=graph.edge_index[:, kept], edge_vector=graph.edge_vector[kept])
    energies, edge_forces = tiny_model(CAPPED).run(cut)
    torch.testing.assert_close(found.evaluate(graph).energies, energies, rtol=0, atol=1e-11)
    torch.testing.assert_close(forces(found.evaluate(graph).edge_forces, graph), forces(edge_forces, cut), rtol=0, atol=1e-11)


def test_a_mean_with_an_affine_head_becomes_the_same_sum(make: Any) -> None:
    made = make(dataclasses.replace(MEAN, head_hidden=()))
    found, file = made.export()
    assert found.facts.separable
    assert not made.model.facts().separable
    assert "trained as a mean with an affine head" in policy(file, "readout")
    for atoms in (sige(), sige("SiGe7"), sige()[:3]):
        check_equal(found, made.model, atoms)


def test_readouts_that_cannot_be(make: Any) -> None:
    make(dataclasses.replace(TINY, readout="total")).refused(
        "not extensive: the forces in a supercell of n cells come out n times"
    )
    make(MEAN).refused("not separable: .* fit a sum over atoms to it with --refit FILE")
    make(MEAN).refused("--refit needs at least 4 structures, got 1", refit={"one": sige()})
    make(MEAN).refused("--refit: b holds C; expected Si, Ge", refit={k: bulk("Si") for k in "acd"} | {"b": bulk("C")})
    make().refused("--refit: the readout of this model is a sum over atoms already", refit={"one": sige()})
    make(dataclasses.replace(MEAN, head_hidden=())).refused("or equal to one", refit={"one": sige()})


def test_a_refitted_sum_is_as_near_to_the_mean_as_the_file_says(make: Any) -> None:
    made = make(MEAN)
    structures = {str(seed): sige(seed=seed) for seed in range(8)}
    found, file = made.export(refit=structures)
    line = policy(file, "readout")
    assert found.facts.separable
    assert found.facts.readout == "refitted"
    assert "on 2 structures left out of the fit energies differ by" in line
    per_atom, force, size = [], [], []
    for atoms in (structures["3"], structures["7"]):
        graph = graph_from_atoms(atoms, TINY.cutoff)
        (old, old_forces), new = made.model.run(graph), found.evaluate(graph)
        per_atom.append(float(new.energies.sum() - old.sum()) / len(atoms))
        force.append(forces(new.edge_forces, graph) - forces(old_forces, graph))
        size.append(forces(old_forces, graph))
    energy = 1000 * float(np.sqrt(np.mean(np.square(per_atom))))
    relative = 100 * float(torch.cat(force).norm() / torch.cat(size).norm())
    assert f"energies differ by {energy:.2g} meV/atom, forces by {relative:.2g} % of their RMS" in line
    assert relative < 10.0
    (again,) = reverify(file, "a.pt", made.checkpoint, {"one": sige("Si8")})
    assert again.energy < 1e-12


def test_a_refit_that_is_too_far_off_is_refused(make: Any) -> None:
    """A head curved so strongly that no affine one is near."""
    made = make(MEAN)
    made.model.head.layers[0].weight *= 200.0
    made.model.head.layers[2].weight *= 20.0
    checkpoint.save(made.checkpoint, made.model, {})
    structures = {str(seed): sige(s, seed=seed) for seed, s in enumerate(["Si8", "Si5Ge3", "SiGe7", "Ge8"] * 3)}
    made.refused("a sum over atoms cannot stand for this readout, on 3 structures .* allowed are 5 meV/atom", refit=structures)


def test_elements_that_training_never_saw(make: Any) -> None:
    found, file = make(elements=["Si"]).export()
    assert found.facts.elements == ("Si",)
    assert file.metadata.config.elements == ("Si", "Ge")
    assert policy(file, "elements") == "elements: Si; any other is refused; Ge: refused, never seen in training"
    with pytest.raises(UserError, match="element Ge: the model was trained for Si only"):
        found.evaluate(graph_from_atoms(sige(), TINY.cutoff))
    check_equal(found, tiny_model(), sige("Si8"))
    make(elements=["Si"]).out.unlink()
    make(elements=["Si"]).refused("--composition holds Ge, the model knows Si only", composition="Si=0.5,Ge=0.5")


def test_a_checkpoint_that_does_not_say_what_it_saw_keeps_its_elements(make: Any) -> None:
    found, file = make().export()
    assert found.facts.elements == ("Si", "Ge")
    assert "does not say which of them its data held" in policy(file, "elements")


def test_a_forged_file_cannot_claim_smoothness_or_hide_a_cap(make: Any) -> None:
    _, file = make(CAPPED).export(keep_cap=True)
    for lie in ({"smooth": True}, {"max_neighbours": None}):
        facts = dataclasses.replace(file.metadata.facts, **lie)
        forged = dataclasses.replace(file, metadata=dataclasses.replace(file.metadata, facts=facts))
        with pytest.raises(UserError, match=f"its {next(iter(lie))} is not that of the model in it"):
            artifact.rebuild(forged)
