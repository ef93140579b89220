"""The parts of the route by positions: padded sizes, recordings, devices."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import Tensor

from tests.lammps import cases
from tests.lammps.frames import Sender, read
from tests.lammps.harness import Array, expected
from tests.tiny import TINY, tiny_model
from triforces_deploy import derivatives
from triforces_deploy.eager import eager, whole_where_it_fits
from triforces_deploy.errors import UserError
from triforces_deploy.graph import Graph
from triforces_deploy.lammps_plugin import placement
from triforces_deploy.lammps_plugin.buckets import SLACK, bucket, fitting
from triforces_deploy.lammps_plugin.on_device import Layout, compacted, evaluate
from triforces_deploy.lammps_plugin.positions import Positions
from triforces_deploy.lammps_plugin.recording import HELD, Replay
from triforces_deploy.lammps_plugin.skin import Pairs, Sizes, skin
from triforces_deploy.memory import Memory
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.payloads.base import PayloadInfo
from triforces_deploy.potential import Potential
from triforces_deploy.verdicts import judge

MODEL = tiny_model()
POTENTIAL = Potential(MODEL.facts(), eager(MODEL, Memory()), "eager")


def cluster(n: int = 40, seed: int = 0) -> Atoms:
    atoms = Atoms(cases.orthogonal()[:n], pbc=False)
    atoms.positions += np.random.default_rng(seed).normal(scale=0.05, size=atoms.positions.shape)
    return atoms


def scale(values: Array) -> float:
    return max(1e-3, float(abs(values).max(initial=0.0)))


def check(frame: SimpleNamespace, atoms: Atoms) -> None:
    wanted = expected(atoms, POTENTIAL)
    n = len(atoms)
    np.testing.assert_allclose(read(frame.energies, (n,)), wanted.energies, rtol=0, atol=1e-12 * scale(wanted.energies))
    np.testing.assert_allclose(read(frame.forces, (n, 3)), wanted.forces, rtol=0, atol=1e-12 * scale(wanted.forces))
    virial = wanted.virial[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]
    np.testing.assert_allclose(read(frame.virial, (6,)), virial, rtol=0, atol=1e-12 * scale(virial))
    if frame.atom_virials:
        np.testing.assert_allclose(read(frame.atom_virial, (n, 6)).sum(0), virial, rtol=0, atol=1e-12 * scale(virial))
    assert frame.shortest == pytest.approx(min([2 * TINY.cutoff, *atoms.get_all_distances()[np.triu_indices(n, 1)]]))


class Tape:
    """A recorder that, like a CUDA graph, can only repeat what it has seen: same tensors in, the same tensor out."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, function: Callable[[], Tensor]) -> Replay:
        self.recorded += 1
        result = function()

        def replay() -> Tensor:
            self.replayed += 1
            return result.copy_(function())

        return replay


def taped(route: placement.Route | None = "graphs") -> tuple[Positions, Tape]:
    positions, tape = Positions(POTENTIAL, None, route), Tape()
    positions._record = tape
    return positions, tape


def test_a_recording_is_used_as_long_as_it_fits() -> None:
    """Atoms that move, change their element or get a new list find the same addresses."""
    positions, tape = taped()
    sender = Sender(TINY.cutoff)
    atoms = cluster()
    for step in range(6):
        atoms.positions += np.random.default_rng(step).normal(scale=0.03, size=atoms.positions.shape)
        if step == 3:
            atoms.symbols[5] = "Ge" if atoms.symbols[5] == "Si" else "Si"
        frame = sender.frame(atoms, new_list=step % 2 == 0)
        positions.step(frame)
        check(frame, atoms)
    assert (tape.recorded, tape.replayed) == (1, 6)
    frame = sender.frame(atoms, atom_virials=True)
    positions.step(frame)
    check(frame, atoms)
    assert tape.recorded == 2, "virials of the atoms are another recording"


def test_more_edges_than_places_are_evaluated_again() -> None:
    """Between two lists, by a squeeze."""
    positions, tape = taped()
    sender = Sender(TINY.cutoff)
    atoms = cluster()
    positions.step(sender.frame(atoms))
    atoms.positions *= 0.9
    frame = sender.frame(atoms, new_list=False)
    positions.step(frame)
    check(frame, atoms)
    assert tape.recorded == 2
    positions.step(sender.frame(atoms, new_list=False))
    assert tape.recorded == 2


def test_recordings_are_forgotten_in_the_end() -> None:
    positions, tape = taped()
    sender = Sender(TINY.cutoff)
    sizes = (10, 18, 28, 40, 55)
    assert len(sizes) == HELD + 1
    for n in (*sizes, sizes[-1], sizes[1], sizes[0]):
        atoms = cluster(n)
        frame = sender.frame(atoms)
        positions.step(frame)
        check(frame, atoms)
    assert tape.recorded == len(sizes) + 1, "the first had to go, the second was still there"


def test_what_cannot_be_recorded_runs_without(capsys: pytest.CaptureFixture[str]) -> None:
    positions, sender, atoms = taped()[0], Sender(TINY.cutoff), cluster()

    def refuse(_function: Callable[[], Tensor]) -> Replay:
        raise RuntimeError("operation not permitted when stream is capturing\nand a long story")

    positions._record = refuse
    for _ in range(2):
        frame = sender.frame(atoms)
        positions.step(frame)
        check(frame, atoms)
    said = capsys.readouterr().err.splitlines()
    assert said == ["triforces-deploy: CUDA graphs are not used: operation not permitted when stream is capturing"]


def test_an_atom_of_another_style_in_the_list_is_refused() -> None:
    positions, sender, atoms = Positions(POTENTIAL, None, "positions"), Sender(TINY.cutoff), cluster()
    frame = sender.frame(atoms)
    sender.kept["row"][7] = -1
    with pytest.raises(UserError, match="an atom changed between a type of this pair style and NULL"):
        positions.step(frame)


@pytest.mark.parametrize("route", ["positions", "graphs"])
@pytest.mark.parametrize(
    "atoms", [Atoms(), Atoms("Si"), Atoms("SiGe", [[0, 0, 0], [0, 0, 2.4]]), Atoms("Si2", [[0, 0, 0], [0, 0, 9]])]
)
def test_few_atoms_or_none(route: placement.Route, atoms: Atoms) -> None:
    positions, sender = Positions(POTENTIAL, None, route), Sender(TINY.cutoff)
    frame = sender.frame(atoms)
    positions.step(frame)
    if len(atoms):
        check(frame, atoms)


def test_padding_counts_for_nothing() -> None:
    """However much there is of it; and the results of padding rows are exact zeros."""
    atoms, sender = cluster(), Sender(TINY.cutoff)
    numbers = torch.from_numpy(atoms.numbers.astype(np.int64))
    composition = graph_from_atoms(atoms, TINY.cutoff).composition
    pairs = Pairs.of(sender.frame(atoms), False, torch.device("cpu"))
    exact = pairs.exact_sizes()
    for extra in (1, 3, 50, 400):
        sizes = Sizes(exact.atoms + extra, exact.rows + 1 + extra, exact.pairs + extra, exact.pairs + 2 * extra)
        positions = torch.zeros(sizes.atoms + 2, 3, dtype=torch.float64)
        positions[: len(atoms)] = torch.from_numpy(atoms.positions)
        positions[-1, 0] = 2 * TINY.cutoff
        result = evaluate(POTENTIAL, skin(pairs, sizes, numbers, composition), positions, None, True, False)
        wanted, n = expected(atoms, POTENTIAL), sizes.rows
        forces = result[: 3 * n].view(n, 3)
        np.testing.assert_allclose(forces[: len(atoms)], wanted.forces, rtol=0, atol=1e-12 * scale(wanted.forces))
        assert not forces[len(atoms) :].any()
        energies = result[Layout(n, False).energies : Layout(n, False).virial]
        np.testing.assert_allclose(energies[: len(atoms)], wanted.energies, rtol=1e-12)
        assert not energies[len(atoms) :].any()


def test_nothing_in_an_evaluation_waits_for_the_device_or_stays_on_the_host() -> None:
    """On torch's device without memory: a number that is asked for, or a tensor of the host, would be an error."""
    meta = torch.device("meta")
    atoms, sender = cluster(), Sender(TINY.cutoff)
    pairs = Pairs.of(sender.frame(atoms), False, torch.device("cpu"))
    sizes = Sizes(60, 70, 4000, 1000)
    numbers = torch.from_numpy(atoms.numbers.astype(np.int64))
    there = skin(pairs, sizes, numbers, torch.zeros(1, 119, dtype=torch.float64))
    there = type(there)(*(t.to(meta) for t in there))
    model = tiny_model().to(meta)
    potential = Potential(MODEL.facts(), model.run, "eager", memory=Memory(device=meta))
    result = evaluate(potential, there, torch.zeros(62, 3, dtype=torch.float64, device=meta), None, True, True)
    assert result.shape == (Layout(70, False).atom_virials + 6 * 70,)
    assert result.device == meta


def test_compaction_keeps_order_and_fills_up() -> None:
    near = torch.tensor([False, True, True, False, True, False])
    spare = torch.tensor([7, 8, 7, 8, 7, 8])
    assert compacted(near, spare).tolist() == [1, 2, 4, 8, 7]
    assert compacted(near, spare[:3]).tolist() == [1, 2]
    assert compacted(near & False, spare).tolist() == [7, 8, 7, 8, 7]


def test_buckets_hold_what_is_needed_and_do_not_flutter() -> None:
    sizes = sorted({bucket(n) for n in range(5000)})
    assert all(bucket(n) >= n for n in range(5000))
    assert all(b / a < 1.16 for a, b in itertools.pairwise(sizes))
    kept = fitting(None, Sizes(100, 100, 1000, 1000))
    assert fitting(kept, Sizes(*(int(n / SLACK) + 1 for n in kept))) == kept
    assert fitting(kept, kept) == kept
    larger = fitting(kept, Sizes(100, 100, 1000, kept.edges + 1))
    assert larger.edges > kept.edges
    assert larger[:3] == kept[:3]
    assert fitting(kept, Sizes(10, 10, 10, 10)) == Sizes(*map(bucket, (10, 10, 10, 10)))


def test_a_neighbour_cap_and_several_ranks_are_not_recorded() -> None:
    capped = Potential(dataclasses.replace(MODEL.facts(), max_neighbours=6), eager(MODEL, Memory()), "eager")
    for positions in (Positions(capped, None, "graphs"), Positions(POTENTIAL, object(), "graphs")):  # type: ignore[arg-type]
        assert positions._most == 0


def gpus(monkeypatch: pytest.MonkeyPatch, count: int, device: str | None = None, route: str | None = None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    for name, value in ((placement.DEVICE, device), (placement.ROUTE, route)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("count", "device", "rank", "where", "by_positions"),
    [
        (0, None, 0, "cpu", False),
        (2, "cpu", 0, "cpu", False),
        (2, None, 0, "cuda:0", True),
        (2, None, 1, "cuda:1", True),
        (2, None, 4, "cuda:0", True),
        (2, "cuda", 3, "cuda:1", True),
        (2, "cuda:1", 0, "cuda:1", True),
    ],
)
def test_each_rank_finds_its_device(
    count: int, device: str | None, rank: int, where: str, by_positions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, count, device)
    found = placement.choose(rank)
    assert (str(found.device), found.by_positions) == (where, by_positions)


@pytest.mark.parametrize(
    ("count", "device", "route", "message"),
    [
        (0, "cuda", None, "TFDEPLOY_DEVICE=cuda: torch sees no GPU here; set it to cpu"),
        (1, "cuda:1", None, "TFDEPLOY_DEVICE=cuda:1: torch sees 1 GPU here"),
        (2, "gpu", None, "TFDEPLOY_DEVICE=gpu: expected cpu, cuda or cuda:N"),
        (2, "cuda:-1", None, "expected cpu, cuda or cuda:N"),
        (0, None, "fast", "TFDEPLOY_ROUTE=fast: expected pairs, positions, graphs"),
    ],
)
def test_devices_that_are_not_there(
    count: int, device: str | None, route: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, count, device, route)
    with pytest.raises(UserError, match=message):
        placement.choose(0)


def test_a_gpu_that_fails_is_left_out_unless_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    def fail(_device: torch.device) -> None:
        raise RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(torch.cuda, "set_device", fail)
    monkeypatch.setattr(placement.artifact, "load", lambda *_: POTENTIAL)
    gpus(monkeypatch, 1)
    _, found = placement.load(None, placement.choose(0))  # type: ignore[arg-type]
    assert "cpu (cuda:0 cannot be used: CUDA error: out of memory), gets edge vectors" in found.describe()
    gpus(monkeypatch, 1, "cuda")
    with pytest.raises(UserError, match="cuda:0: CUDA error: out of memory; set TFDEPLOY_DEVICE=cpu"):
        placement.load(None, placement.choose(0))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("backend", "target", "action"),
    [
        ("aoti", "linux-x86_64-v3", "rebuild"),
        ("aoti", "linux-x86_64-cuda-sm_90", "run"),
        ("torchscript", "any", "run"),
        ("export", "any", "run"),
        ("onnx", "any", "leave out"),
    ],
)
def test_which_forms_run_on_a_gpu(backend: str, target: str, action: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    info = PayloadInfo(backend, "float64", target, torch.__version__, "")
    assert judge(info, True, torch.device("cuda:0")).action == action


def test_a_gpu_without_enough_memory_goes_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TFDEPLOY_MEMORY", raising=False)
    small, large = (graph_from_atoms(cluster(n), TINY.cutoff) for n in (10, 40))
    tried: list[int] = []

    def whole(graph: Graph) -> tuple[Tensor, ...]:
        tried.append(graph.edge_vector.shape[0])
        if graph is large:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return MODEL.run(graph)

    run = whole_where_it_fits(whole, eager(MODEL, Memory()))
    for graph in (small, large, large, small):
        found, wanted = run(graph), MODEL.run(graph)
        torch.testing.assert_close(derivatives.forces(found[1], graph), derivatives.forces(wanted[1], graph))
    assert len(tried) == 3, "what has failed once is not tried again"
