"""LAMMPS' own ML-IAP coupling, through faithful fakes of what it hands over."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms

from tests.lammps import cases
from tests.lammps.fakes import Common, GpuData, KokkosData, PlainData
from tests.lammps.harness import BIN, expected, run
from tests.tiny import TINY, tiny_model
from triforces_deploy import derivatives
from triforces_deploy.config import BackboneConfig
from triforces_deploy.errors import UserError
from triforces_deploy.lammps_plugin import mliap, mliap_start, mpi, placement
from triforces_deploy.lammps_plugin.behind import Lammps
from triforces_deploy.lammps_plugin.mliap import Coupling
from triforces_deploy.memory import Memory, Need
from triforces_deploy.potential import Potential

assert TINY.structure is not None
LAYERED = dataclasses.replace(TINY, composition=None)
LOCAL = dataclasses.replace(
    LAYERED,
    backbone=BackboneConfig("orb_v3", {**TINY.backbone.options, "n_layers": 1}),
    structure=dataclasses.replace(TINY.structure, layers=0),
)


def potential(config: Any, **facts: Any) -> Potential:
    model = tiny_model(config)
    return Potential(dataclasses.replace(model.facts(), **facts), lambda g: derivatives.evaluate(model, g), "eager")


def coupling(ours: Potential) -> Coupling:
    """Of what is open already."""
    return Coupling(lambda _device: ours)


def check(data: Common, atoms: Atoms, wanted: Potential) -> None:
    reference = expected(atoms, wanted)
    np.testing.assert_allclose(data.written["energy"], reference.energy, rtol=0, atol=1e-9 * max(len(atoms), 1))
    per_atom = data.eatoms if isinstance(data, KokkosData) else data.written["eatoms"]
    np.testing.assert_allclose(per_atom, reference.energies, rtol=0, atol=1e-9)
    np.testing.assert_allclose(data.forces(), reference.forces, rtol=0, atol=1e-8)
    symmetric = (data.virial + data.virial.T) / 2
    np.testing.assert_allclose(symmetric, reference.virial, rtol=0, atol=1e-8 * max(1.0, abs(reference.virial).max()))


@pytest.mark.parametrize("ghostneigh", [False, True])
@pytest.mark.parametrize("case", cases.ALL.values(), ids=cases.ALL)
@pytest.mark.parametrize(("kind", "config"), [(PlainData, LOCAL), (KokkosData, LOCAL), (KokkosData, LAYERED)])
def test_same_numbers_as_the_periodic_graph(kind: Any, config: Any, case: Any, ghostneigh: bool) -> None:
    ours = potential(config)
    assert ours.facts.n_exchanges == (4 if config is LAYERED else 0)
    data = kind(case(), 4.0, ours.facts.elements, ghostneigh=ghostneigh)
    running = coupling(ours)
    for _ in range(2):
        data.f[:], data.virial[:] = 0, 0
        running.compute_forces(data)
    check(data, case(), ours)


def test_other_styles_atoms_are_left_alone() -> None:
    ours = cases.orthogonal()
    argon = Atoms("Ar2", positions=[[1.0, 1.2, 1.4], [5.0, 6.0, 7.1]], cell=ours.cell, pbc=True)
    for kind, config in ((PlainData, LOCAL), (KokkosData, LAYERED)):
        data = kind(argon[:1] + ours + argon[1:], 4.0, ("Si", "Ge"))
        data.f[:] = 1.0  # of another style: added to, not overwritten
        before = data.forces()
        coupling(potential(config)).compute_forces(data)
        moved = data.forces() - before
        wanted = expected(ours, potential(config))
        np.testing.assert_allclose(moved[1:-1], wanted.forces, rtol=0, atol=1e-8)
        np.testing.assert_allclose(moved[[0, -1]], 0, atol=0)
        np.testing.assert_allclose(data.written["energy"], wanted.energy, rtol=0, atol=1e-7)


def test_an_empty_rank_writes_zero_and_joins_every_exchange() -> None:
    ours = potential(LAYERED)
    empty, full = (KokkosData(atoms, 4.0, ("Si", "Ge")) for atoms in (Atoms(pbc=False), cases.orthogonal()))
    for data in (empty, full):
        coupling(ours).compute_forces(data)
    assert empty.written["energy"] == 0.0
    assert empty.calls == full.calls
    kinds = [name for name, _ in full.calls]
    assert kinds.count("forward") > 4
    assert kinds.count("reverse") > 4
    plain = PlainData(Atoms(pbc=False), 4.0, ("Si", "Ge"))
    coupling(potential(LOCAL)).compute_forces(plain)
    assert plain.written == {"energy": 0.0}


def test_single_precision() -> None:
    model = tiny_model(LAYERED)
    model.set_network_dtype(torch.float32)
    ours = Potential(model.facts(), lambda g: derivatives.evaluate(model, g), "eager")
    data = KokkosData(cases.triclinic(), 4.0, ("Si", "Ge"))
    coupling(ours).compute_forces(data)
    np.testing.assert_allclose(data.forces(), expected(cases.triclinic(), ours).forces, rtol=0, atol=1e-5)


def test_several_layers_need_an_exchange_or_ids() -> None:
    with pytest.raises(UserError, match="neither exchanges features of ghost atoms nor tells their ids"):
        coupling(potential(LAYERED)).compute_forces(PlainData(cases.orthogonal(), 4.0, ("Si", "Ge")))


class Behind:
    """A LAMMPS on one rank, as far as the coupling asks."""

    def __init__(
        self, data: Common, units: str = "metal", masses: tuple[float, ...] = (28.085, 72.63), bonds: bool = False
    ) -> None:
        self.data, self.units, self.masses, self.bonds_drop_pairs = data, lambda: units, lambda: masses, lambda: bonds

    def ids(self, n: int) -> torch.Tensor:
        return 100 - torch.from_numpy(self.data.owner)

    def types(self, n: int) -> torch.Tensor:
        return torch.from_numpy(self.data._elems[:n]).to(torch.int64) + 1

    def setting(self, name: str) -> int:
        return {"world_rank": 0, "world_size": 1, "kokkos_ngpus": 0}[name]

    def communicator(self) -> None:
        return None


@pytest.fixture
def behind(monkeypatch: pytest.MonkeyPatch) -> list[Behind]:
    """What stands behind the next couplings."""
    standing: list[Behind] = []
    monkeypatch.setattr(Lammps, "behind", lambda _interface: standing[-1])
    return standing


@pytest.mark.parametrize("ghostneigh", [False, True])
@pytest.mark.parametrize("case", cases.ALL.values(), ids=cases.ALL)
@pytest.mark.parametrize("kind", [PlainData, KokkosData])
def test_one_rank_folds_ghosts_by_their_ids(kind: Any, case: Any, ghostneigh: bool, behind: list[Behind]) -> None:
    ours = potential(TINY)
    data = kind(case(), 4.0, ours.facts.elements, ghostneigh=ghostneigh)
    behind.append(Behind(data))
    coupling(ours).compute_forces(data)
    check(data, case(), ours)
    assert not (isinstance(data, KokkosData) and data.calls)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"units": "real"}, "the potential is in units metal but the run is in real; write 'units metal'"),
        ({"bonds": True}, "write 'special_bonds lj/coul 1 1 1'"),
        ({"masses": (72.63, 28.085)}, "type 1 is Si in pair_coeff but its mass 72.63 is that of Ge"),
    ],
)
def test_units_and_masses_are_checked_where_they_can_be(wrong: Any, message: str, behind: list[Behind]) -> None:
    data = PlainData(cases.orthogonal(), 4.0, ("Si", "Ge"))
    behind.append(Behind(data, **wrong))
    with pytest.raises(UserError, match=message):
        coupling(potential(LOCAL)).compute_forces(data)


def test_composition_of_the_whole_system(monkeypatch: pytest.MonkeyPatch) -> None:
    atoms = cases.orthogonal()
    data = KokkosData(atoms, 4.0, ("Si", "Ge"))
    coupling(potential(TINY)).compute_forces(data)
    check(data, atoms, potential(TINY))  # counted: there is one rank
    monkeypatch.setattr(mpi, "world_size", lambda: 2)
    monkeypatch.setattr(mpi, "abort", lambda: None)
    with pytest.raises(UserError, match="--composition frozen"):
        coupling(potential(TINY)).compute_forces(KokkosData(atoms, 4.0, ("Si", "Ge")))
    monkeypatch.undo()
    frozen = potential(TINY, composition="frozen", reference={"Si": 48, "Ge": 16})
    data = KokkosData(atoms, 4.0, ("Si", "Ge"))
    coupling(frozen).compute_forces(data)
    check(data, atoms, frozen)


@pytest.mark.parametrize("case", [cases.triclinic, cases.lonely])
def test_arrays_on_a_gpu_stay_there(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole rows are exchanged at once, forces go back by address when they are there, and no array becomes numpy's."""
    ours = potential(LAYERED)
    data = GpuData(case(), 4.0, ("Si", "Ge"))
    monkeypatch.setattr(mliap, "_synchronize", lambda _device: setattr(data, "complete", True))
    coupling(ours).compute_forces(data)
    assert data.complete
    check(data, case(), ours)
    widths = [width for _, width in data.calls]
    assert len(widths) == 2 * 4 + 8  # the exchanges of the model, and those of the test at the start
    assert max(widths) > 3


def test_the_model_runs_where_lammps_keeps_its_arrays(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[torch.device] = []

    def opened(device: torch.device) -> Potential:
        asked.append(device)
        if device.type != "cpu":
            raise UserError("seen")
        return potential(LAYERED)

    running, data = Coupling(opened), KokkosData(cases.orthogonal(), 4.0, ("Si", "Ge"))
    monkeypatch.setenv("TFDEPLOY_DEVICE", "cuda:1")
    for interface in ("one", "one", "another"):
        running.compute_forces(data, interface)
    assert asked == [torch.device("cpu")]
    said = capsys.readouterr().out
    assert said.count("device: cpu, where LAMMPS keeps its lists; WARNING: TFDEPLOY_DEVICE=cuda:1 has no effect") == 2
    monkeypatch.setattr(mliap, "device_of", lambda *_arguments: torch.device("cuda", 3))
    with pytest.raises(UserError, match="seen"):
        running.compute_forces(data, "another")
    assert asked == [torch.device("cpu"), torch.device("cuda", 3)]


@pytest.mark.parametrize(
    ("wanted", "device", "remedy"),
    [
        (None, "cuda:1", ""),
        ("cpu", "cpu", ""),
        ("cuda", "cuda:1", ""),
        ("cuda:1", "cuda:1", ""),
        ("cpu", "cuda:1", "without '-k on g N'"),
        ("cuda", "cpu", "or use pair_style triforces"),
        ("cuda:0", "cuda:1", "by CUDA_VISIBLE_DEVICES"),
    ],
)
def test_a_device_that_lammps_does_not_have_is_told(
    wanted: str | None, device: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TFDEPLOY_DEVICE", raising=False)
    if wanted is not None:
        monkeypatch.setenv("TFDEPLOY_DEVICE", wanted)
    said = placement.overruled(torch.device(device))
    assert said == "" if remedy == "" else f"WARNING: TFDEPLOY_DEVICE={wanted} has no effect" in said and remedy in said
    monkeypatch.setenv("TFDEPLOY_DEVICE", "gpu")
    with pytest.raises(UserError, match="TFDEPLOY_DEVICE=gpu: expected cpu, cuda or cuda:N"):
        placement.overruled(torch.device(device))


@pytest.mark.parametrize(("config", "fits"), [(LAYERED, False), (LOCAL, True)])
def test_ranks_that_exchange_run_the_form_that_fits_on_all(config: Any, fits: bool, behind: list[Behind]) -> None:
    class Ranks:
        """Another rank, where nothing fits."""

        def everybodys(self, rows: torch.Tensor) -> list[torch.Tensor]:
            return [rows, torch.zeros_like(rows)]

    ours = potential(config)
    ours.memory = Memory(whole=Need(1.0, 1.0))
    assert ours.memory.fits(10, 10)
    data = PlainData(cases.orthogonal(), 4.0, ("Si", "Ge"))
    behind.append(Behind(data))
    behind[-1].communicator = Ranks
    mliap_start.share_memory(ours, behind[-1])
    assert ours.memory.fits(10, 10) is fits


def test_a_mistake_is_printed_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """LAMMPS prints what it gets from Python through the hook for uncaught errors."""
    usual = sys.excepthook
    try:
        with pytest.raises(UserError) as mistake:
            coupling(potential(LAYERED)).compute_forces(PlainData(cases.orthogonal(), 4.0, ("Si", "Ge")))
        sys.excepthook(mistake.type, mistake.value, mistake.tb)
        assert capsys.readouterr().err == f"ERROR: {mistake.value}\n"
        assert sys.excepthook is usual
    finally:
        sys.excepthook = usual


@pytest.mark.parametrize("defect", ["stride", "adjoint"])
def test_a_wrong_exchange_is_found_before_it_does_harm(defect: str) -> None:
    data = KokkosData(cases.orthogonal(), 4.0, ("Si", "Ge"), defect=defect)
    with pytest.raises(UserError, match="exchange of ghost atoms gives wrong features"):
        coupling(potential(LAYERED)).compute_forces(data)
    assert not data.f.any()


def test_numbers_that_are_none() -> None:
    ours = potential(LOCAL)
    broken = Potential(
        ours.facts, lambda g: derivatives.evaluate(lambda h: h.numbers * torch.nan * h.edge_vector.sum(), g), "eager"
    )
    with pytest.raises(RuntimeError, match="not finite"):
        coupling(broken).compute_forces(PlainData(cases.orthogonal(), 4.0, ("Si", "Ge")))


def test_an_error_on_one_rank_ends_the_job(tmp_path: Path) -> None:
    """LAMMPS would wait for the other ranks, and they for this one."""
    (tmp_path / "ranks.py").write_text(
        "import lammps, os, time\n"
        "host = lammps.lammps(cmdargs=['-log', 'none', '-screen', 'none'])\n"
        "if os.environ['PMI_RANK'] == '0':\n"
        "    time.sleep(60)\n"
        "from tests.lammps.test_mliap import *\n"
        "class Broken(Potential):\n"
        "    def evaluate(self, *a, **k): raise RuntimeError('broken on purpose')\n"
        "ours = potential(LOCAL)\n"
        "coupling(Broken(ours.facts, ours._run, 'eager')).compute_forces(PlainData(cases.lonely(), 4.0, ('Si', 'Ge')))\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    ended = run([str(BIN / "python"), str(tmp_path / "ranks.py")], tmp_path, 2, {"PYTHONPATH": root}, timeout=40)
    assert ended.code != 0
    assert "broken on purpose" in ended.text


def test_the_file_as_lammps_opens_it(tiny_artifact: Path) -> None:
    unified = torch.load(tiny_artifact, weights_only=False)
    assert unified.element_types == ["Si", "Ge"]
    assert (unified.rcutfac, unified.ndescriptors, unified.nparams) == (2.0, 1, 1)
    data = KokkosData(cases.orthogonal(), 4.0, ("Si", "Ge"))
    unified.compute_forces(data)
    check(data, cases.orthogonal(), potential(TINY))
