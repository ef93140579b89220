"""Who gets to see which structures, and how they reach a step: splits, references, batches, turns."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect

from tests.training.small import MODEL, frames_of, labelled, recipe, structures, written
from triforces_deploy import derivatives
from triforces_deploy.config import ModelConfig, StructureConfig, read
from triforces_deploy.errors import UserError
from triforces_deploy.graph import Graph
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.nn.scatter import scatter_sum
from triforces_deploy.nn.zbl import FORMS, ZBL
from triforces_deploy.streams.structure import StructureStream
from triforces_deploy.training import data, normalising
from triforces_deploy.training.batches import Order, Stream, cut, random_rotations, rotated
from triforces_deploy.training.data import DataConfig
from triforces_deploy.training.objective import predict
from triforces_deploy.training.reading import read_packed
from triforces_deploy.training.structures import Sample, join
from triforces_deploy.training.supervised import Supervised

CONFIG = read(ModelConfig, MODEL, "model")
CUTOFF = CONFIG.cutoff


# ---- who sees what ----


def numbered(counts: list[int]) -> dict[str, int]:
    """Trajectories of so many frames."""
    return {f"t{k}": n for k, n in enumerate(counts)}


@pytest.mark.parametrize("seed", range(20))
def test_whole_trajectories_are_dealt(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 30, size=rng.integers(3, 40)).tolist()
    share = float(rng.uniform(0.05, 0.4))
    split = data.split_by_trajectory(numbered(counts), share, share, seed)
    parts = [set(split.train), set(split.validation), set(split.test)]
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(counts)
    assert split == data.split_by_trajectory(numbered(counts), share, share, seed)
    for part in parts[1:]:  # never more than one trajectory too many
        assert sum(counts[int(t[1:])] for t in part) < share * sum(counts) + max(counts)


def test_the_fractions_are_met_and_the_seed_decides() -> None:
    frames = numbered([5] * 100)
    split = data.split_by_trajectory(frames, 0.2, 0.1, 0)
    assert (len(split.train), len(split.validation), len(split.test)) == (70, 20, 10)
    assert split != data.split_by_trajectory(frames, 0.2, 0.1, 1)
    assert data.split_by_trajectory(frames, 0.0, 0.0, 0).train == tuple(sorted(f"t{k}" for k in range(100)))


def test_impossible_splits() -> None:
    with pytest.raises(UserError, match=r"hold 2 trajectories, 3 are needed.*set info\['trajectory'\]"):
        data.split_by_trajectory(numbered([50, 50]), 0.1, 0.1, 0)
    for shares in ((0.5, 0.5), (-0.1, 0.1), (0.1, 1.0)):
        with pytest.raises(UserError, match="expected fractions"):
            data.split_by_trajectory(numbered([5] * 9), *shares, 0)


def test_no_trajectory_reaches_two_parts(tmp_path: Path) -> None:
    """Down to the numbers: every held-out energy is that of a held-out trajectory."""
    atoms = structures(8, 3)
    path = written(tmp_path, *np.random.default_rng(0).permutation(np.array([*atoms, None], dtype=object)[:-1]))
    found = data.load(DataConfig(files=(str(path),), validation=0.25, test=0.25), CONFIG)
    assert (len(found.train), len(found.validation), len(found.test)) == (12, 6, 6)
    for part in ("train", "validation", "test"):
        expected = sorted(a.get_potential_energy() for a in atoms if a.info["trajectory"] in getattr(found.split, part))
        assert sorted(float(s.energy) for s in getattr(found, part)) == pytest.approx(expected, abs=1e-7)


def test_validation_files_of_their_own(tmp_path: Path) -> None:
    train = written(tmp_path, *structures(4, 2))
    other = written(
        tmp_path, *[labelled(a, trajectory=f"other {k}") for k, a in enumerate(structures(3, 1, seed=9))], name="v.xyz"
    )
    config = DataConfig(files=(str(train),), validation_files=(str(other),), test=0.25)
    found = data.load(config, CONFIG)
    assert (len(found.train), len(found.validation), len(found.test)) == (6, 3, 2)
    assert found.split.validation == ("other 0", "other 1", "other 2")
    assert list(found.files) == [str(train), str(other)]
    with pytest.raises(UserError, match="share trajectory 'run 0'"):
        data.load(DataConfig(files=(str(train),), validation_files=(str(train),)), CONFIG)
    with pytest.raises(UserError, match=r"data\.files is empty"):
        data.load(DataConfig(), CONFIG)


def test_undeclared_trajectories_are_counted(tmp_path: Path) -> None:
    atoms = structures(4, 2)
    for a in atoms[:4]:
        del a.info["trajectory"]
    found = data.load(DataConfig(files=(str(written(tmp_path, *atoms)),), validation=0.2, test=0.2), CONFIG)
    assert found.undeclared == 4


# ---- references and scale ----


def sample(atoms: Atoms, energy: float) -> Sample:
    forces = torch.full((len(atoms), 3), 0.5, dtype=torch.float64)
    stress = torch.full((1, 3, 3), torch.nan, dtype=torch.float64)
    return Sample(graph_from_atoms(atoms, CUTOFF), torch.tensor([energy], dtype=torch.float64), forces, stress)


def test_planted_references_come_back() -> None:
    planted = {14: -4.63, 32: -3.85}
    references = normalising.fit_references([sample(a, sum(planted[z] for z in a.numbers)) for a in structures(4, 2)])
    assert references.dtype == torch.float64
    assert {z: pytest.approx(float(references[z]), abs=1e-10) for z in planted} == planted
    assert sorted(torch.nonzero(references).flatten().tolist()) == [14, 32]


def test_references_of_a_compound_that_tells_nothing_apart() -> None:
    atoms = structures(1, 1)[0]
    atoms.numbers[:4] = 32
    references = normalising.fit_references([sample(atoms, -33.6), sample(atoms.repeat((1, 1, 2)), -67.2)])
    assert float(references[14]) == pytest.approx(-4.2)
    assert float(references[32]) == pytest.approx(-4.2)


def test_the_scale_is_the_rms_force() -> None:
    samples = [sample(a, 0.0) for a in structures(2, 1)]
    assert float(normalising.fit_scale(samples)) == pytest.approx(0.5)
    assert float(normalising.fit_scale([s._replace(forces=0 * s.forces) for s in samples])) == 1.0


def test_repulsion_that_the_model_adds_is_no_business_of_its_references() -> None:
    """Planted energies of free atoms plus the repulsion of atoms that all but touch."""
    planted, samples = {14: -5.0, 32: -4.0}, []
    for k, atoms in enumerate(structures(4, 2)):
        atoms.set_cell(atoms.cell * (0.7 + 0.02 * k), scale_atoms=True)
        graph = graph_from_atoms(atoms, CUTOFF)
        energies, edge_forces = derivatives.evaluate(ZBL(), graph)
        energy = energies.sum()[None] + sum(planted[int(z)] for z in atoms.numbers)
        samples.append(Sample(graph, energy, derivatives.forces(edge_forces, graph), torch.zeros(1, 3, 3)))
    assert min(float(s.forces.abs().max()) for s in samples) > 1.0
    left = list(normalising.less_repulsion(samples, ZBL()))
    references = normalising.fit_references(left)
    assert [float(references[z]) for z in planted] == pytest.approx([-5.0, -4.0], rel=1e-9)
    assert float(normalising.fit_scale(left)) == 1.0
    assert abs(float(normalising.fit_references(samples)[14]) + 5.0) > 0.5


@pytest.mark.parametrize("form", list(FORMS))
def test_the_repulsion_is_taken_from_the_labels_in_the_form_that_the_model_adds(form: str, tmp_path: Path) -> None:
    """Planted are energies of free atoms and forces of 2 eV/Å, and the repulsion of that form comes on top."""
    planted, frames, rng = {14: -5.0, 32: -4.0}, structures(4, 2), np.random.default_rng(0)
    for atoms in frames:
        atoms.set_cell(0.75 * atoms.cell, scale_atoms=True)
        graph = graph_from_atoms(atoms, CUTOFF)
        energies, edge_forces = derivatives.evaluate(ZBL(FORMS[form]), graph)
        forces = rng.normal(size=(len(atoms), 3))
        forces *= 2.0 / np.sqrt(np.mean(forces**2))
        # MACE's scale multiplies the repulsion too and is that of the forces as they stand; the mean is over atoms.
        share = {"mace": 2.0, "orb-mean": 1 / len(atoms)}.get(form, 1.0)
        if form != "mace":
            forces += share * derivatives.forces(edge_forces, graph).numpy()
        energy = share * float(energies.sum()) + sum(planted[int(z)] for z in atoms.numbers)
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces, stress=np.zeros(6))
    model = Supervised(recipe(written(tmp_path, *frames), model={"zbl": True, "zbl_form": form})).new_learner()
    assert float(model.scale) == pytest.approx(2.0, rel=1e-6)
    assert [float(model.references[z]) for z in planted] == pytest.approx([-5.0, -4.0], rel=1e-6)


# ---- batches ----


def test_every_pass_sees_each_structure_once() -> None:
    order = Order(np.ones(7, np.int64), 3, seed=5)
    drawn = [k for step in range(21) for k in order.batch(step)]
    passes = [drawn[7 * p : 7 * p + 7] for p in range(9)]
    assert all(sorted(p) == list(range(7)) for p in passes)
    assert len({tuple(p) for p in passes}) > 7
    assert Order(np.ones(7, np.int64), 3, seed=5).batch(20) == drawn[60:]  # from nowhere, as after a restart
    assert order.batch(3) == drawn[9:12]  # and back
    assert Order(np.ones(7, np.int64), 3, seed=6).batch(20) != drawn[60:]


@pytest.mark.parametrize("size", [1, 30, 100, 250, 10_000])
def test_batches_are_full_and_not_fuller(size: int) -> None:
    """By sizes that differ, one of them above the limit; no batch could have taken the structure that follows it."""
    sizes = np.random.default_rng(size).integers(1, 60, 40)
    sizes[7] = 120
    order = Order(sizes, size, seed=0)
    batches = [order.batch(step) for step in range(90)]
    stream = [k for batch in batches for k in batch]
    for start in range(0, len(stream) - 40, 40):
        assert sorted(stream[start : start + 40]) == list(range(40))
    for batch, following in itertools.pairwise(batches):
        total = sizes[batch].sum()
        assert len(batch) == 1 or total <= size
        assert total + sizes[following[0]] > size
    assert Order(sizes, size, seed=0).batch(89) == batches[89]


def test_batches_are_functions_of_the_step(tmp_path: Path) -> None:
    """And the shares of several processes are parts of them."""
    part = part_of(written(tmp_path, *structures(3, 2)), written(tmp_path, *structures(2, 2, seed=1), name="other.xyz"))
    stream = Stream(part, 4, "structures", 1, rotate=True)
    straight = list(stream.batches(range(8)))
    resumed = Stream(part, 4, "structures", 1, rotate=True).batches(range(7, 4, -2))
    for step, batch in zip((7, 5), resumed, strict=True):
        for left, right in zip(flat(batch), flat(straight[step]), strict=True):
            assert torch.equal(left, right)
    shares = [next(stream.batches(range(2, 3), rank, 3)) for rank in range(3)]
    assert [len(s.energy) for s in shares] == [2, 1, 1]
    whole = straight[2].forces.reshape(4, 8, 3)
    assert torch.equal(shares[0].forces.reshape(2, 8, 3), whole[[0, 3]])
    assert torch.equal(shares[2].forces.reshape(1, 8, 3), whole[[2]])
    with pytest.raises(UserError, match="the batch of step 1 has 4 structures, which 5 processes and pieces cannot share"):
        next(stream.batches(range(1), 0, 5))
    plain = next(Stream(part, 4, "structures", 1, rotate=False).batches(range(1)))
    chosen = join([part[k] for k in stream.chosen(0)])
    assert torch.equal(plain.forces, chosen.forces)
    assert torch.equal(plain.energy, straight[0].energy)
    assert not torch.allclose(plain.forces, straight[0].forces)


def test_a_validation_sees_everything_once() -> None:
    """In batches that keep the limit where a structure alone does."""
    sizes = np.array([3, 4, 2, 9, 1, 1, 6])
    assert list(cut(sizes, 7)) == [[0, 1], [2], [3], [4, 5], [6]]
    assert list(cut(sizes[:0], 7)) == []


def pair() -> Atoms:
    """A molecule."""
    atoms = Atoms("SiGe", [(0, 0, 0), (0, 0, 2.4)])
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.zeros((2, 3)))
    return atoms


def part_of(*paths: Path) -> data.Part:
    """Everything that is in some files."""
    packs = tuple(read_packed(paths, CONFIG.elements, CUTOFF))
    return data.Part(packs, np.array([(p, k) for p, pack in enumerate(packs) for k in range(len(pack))]))


def flat(sample: Sample) -> list[torch.Tensor]:
    return [*sample.graph, *sample[1:4]]


def test_sizes_and_subsets_of_a_part(tmp_path: Path) -> None:
    part = part_of(written(tmp_path, *structures(2, 2)), written(tmp_path, pair(), name="pair.xyz"))
    assert part.sizes("structures").tolist() == [1] * 5
    assert part.sizes("atoms").tolist() == [8] * 4 + [2]
    assert part.sizes("edges").tolist() == [s.graph.edge_index.shape[1] for s in part]
    assert [len(chunk.energy) for chunk in part.chunks(size=2)] == [2, 2, 1]
    spaced = torch.cat([chunk.energy for chunk in part.chunks(most=2)])
    assert spaced.tolist() == [float(part[0].energy), float(part[2].energy)]


# ---- turning ----


def test_turns_are_uniform_over_all_of_o3() -> None:
    """Moments of the Haar measure: E[R] = 0, E[R²] = 1/3, E[R⁴] = 1/5 for each entry, half of them reflections."""
    turns = random_rotations(40_000, np.random.default_rng(0))
    np.testing.assert_allclose(turns @ turns.transpose(1, 2), torch.eye(3).expand(40_000, 3, 3), atol=1e-12)
    assert float(torch.linalg.det(turns).mean()) == pytest.approx(0, abs=0.02)
    np.testing.assert_allclose(turns.mean(dim=0), 0, atol=0.02)
    np.testing.assert_allclose(turns.square().mean(dim=0), 1 / 3, atol=0.01)
    np.testing.assert_allclose(turns.pow(4).mean(dim=0), 1 / 5, atol=0.01)


def turned_and_labelled_again(atoms: Atoms, turn: torch.Tensor) -> Atoms:
    """What ASE says of the turned crystal."""
    moved = atoms.copy()
    moved.set_cell(atoms.cell.array @ turn.numpy().T)
    moved.positions = atoms.positions @ turn.numpy().T
    return labelled(moved)


def test_labels_turn_as_those_of_the_turned_crystal(tmp_path: Path) -> None:
    atoms = structures(1, 1)[0].repeat((1, 1, 2))
    atoms.positions[0] += [0.1, -0.2, 0.3]
    atoms = labelled(atoms)
    with connect(tmp_path / "a.db") as database:
        database.write(atoms)
    original = frames_of(tmp_path / "a.db")[0].sample
    for turn in random_rotations(4, np.random.default_rng(3)):
        ours, truth = rotated(original, turn[None]), turned_and_labelled_again(atoms, turn)
        np.testing.assert_allclose(ours.forces, truth.get_forces(), atol=1e-12)
        np.testing.assert_allclose(ours.stress[0], truth.get_stress(voigt=False), atol=1e-13)
        np.testing.assert_allclose(ours.graph.cell[0], truth.cell.array, atol=1e-12)
        assert float(ours.energy) == pytest.approx(truth.get_potential_energy(), abs=1e-10)
        assert abs(original.forces - ours.forces).max() > 0.01


def springs(graph: Graph) -> torch.Tensor:
    """An energy that knows no direction."""
    length = graph.edge_vector.norm(dim=1)
    return scatter_sum((CUTOFF - length) ** 3, graph.edge_index[1], len(graph.numbers))


def test_an_invariant_energy_stays_and_its_forces_turn() -> None:
    one, two = (sample(a, 0.0) for a in structures(2, 1))
    turns = random_rotations(2, np.random.default_rng(1))
    still = predict(springs, join([one, two]).graph)
    moved = predict(springs, rotated(join([one, two]), turns).graph)
    np.testing.assert_allclose(moved.energy, still.energy, rtol=1e-12)
    np.testing.assert_allclose(moved.forces[:8], still.forces[:8] @ turns[0].T, atol=1e-10)
    np.testing.assert_allclose(moved.forces[8:], still.forces[8:] @ turns[1].T, atol=1e-10)
    np.testing.assert_allclose(moved.stress, turns @ still.stress @ turns.transpose(1, 2), atol=1e-12)


def test_the_structure_stream_does_not_notice_the_turn() -> None:
    torch.manual_seed(0)
    stream = StructureStream(StructureConfig(width=8, hidden=8, n_radial=3, n_channels=2, l_max=2, layers=1), CUTOFF).double()
    still = sample(structures(1, 1)[0], 0.0)
    moved = rotated(still, random_rotations(1, np.random.default_rng(5)))
    with torch.no_grad():
        np.testing.assert_allclose(stream(moved.graph), stream(still.graph), atol=1e-12)
