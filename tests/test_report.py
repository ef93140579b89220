"""The page about a demo shows the numbers of its files; the pictures show the right things."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write
from matplotlib.figure import Figure

from triforces_deploy import pictures, report
from triforces_deploy.errors import UserError

ERRORS = {
    "model": {"energy_rmse": 3.25, "forces_rmse": 78.125, "forces_percent": 9.875, "stress_rmse": 1.5},
    "baseline": {"energy_rmse": 6.5, "forces_rmse": 99.5, "forces_percent": 12.625, "stress_rmse": 2.75},
    "nothing": {"energy_rmse": 41.5, "forces_rmse": 791.0, "forces_percent": 100.0, "stress_rmse": None},
}
VERIFY = [
    {"backend": "aoti", "reference": "eager", "energy": 1.1e-13, "forces": 2.2e-12, "stress": 3.3e-11, "tolerance": 1e-9},
    {"backend": "torchscript", "reference": "eager", "energy": 0.0, "forces": 4.4e-12, "stress": 5.5e-11, "tolerance": 1e-9},
]
TRAINING_LOG = """step,lr,loss,loss_energy,loss_forces,val_score,val_energy_mae,val_energy_rmse,val_forces_mae,val_forces_rmse
50,0.004,9.5,0.1,0.2,,,,,
100,0.003,,,,8.5,5,6.25,40,{first}
150,0.003,7.5,0.1,0.2,,,,,
200,0.001,,,,4.5,3,3.5,20,{second}
"""
SLOPE = 0.125
"""eV/ps of the total energy at constant energy, all atoms together."""


def thermo(rows: list[tuple[float, ...]]) -> str:
    head = "Per MPI rank memory allocation (min/avg/max) = 3.4 | 3.4 | 3.4 Mbytes\n"
    names = (
        "   Step          Time           Temp          PotEng         KinEng         TotEng         Press          Volume    \n"
    )
    body = "".join(" ".join(f"{x:>18.14g}" for x in row) + "\n" for row in rows)
    return head + names + body + f"Loop time of 1.0 on 1 procs for {len(rows)} steps with 63 atoms\n\nsome statistics\n\n"


def lammps_log(start: float, relaxed: float) -> str:
    def nve(k: int) -> tuple[float, ...]:
        time = 0.2 + 0.01 * k
        total = relaxed + 5 + SLOPE * (time - 0.2)
        return (200 + 10 * k, time, 290 + 20 * (k % 2), total - 2, 2, total, 0, 1000)

    minimised = [(0, 0, 0, start, 0, start, 0, 1000), (17, 0.017, 0, relaxed, 0, relaxed, 0, 1000)]
    heated = [(10 * k, 0.01 * k, 30.0 * k, relaxed + 1, 1, relaxed + 2, 0, 1000) for k in range(21)]
    tables = thermo(minimised) + thermo(heated) + thermo([nve(k) for k in range(30)])
    return "LAMMPS (22 Jul 2025)\nunits metal\n" + tables + "Total wall time: 0:00:03\n"


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """A vacancy and a germanium atom in 64 silicon atoms, as the commands would have left them."""
    for name in ("run", "baseline", "md"):
        (tmp_path / name).mkdir()
    for name in ("labels.extxyz", "run/best.ckpt", "baseline/best.ckpt", "triforces.pt", "md/in.defect"):
        (tmp_path / name).write_text("only its presence counts\n")
    (tmp_path / "run" / "log.csv").write_text(TRAINING_LOG.format(first=80.5, second=40.25))
    (tmp_path / "baseline" / "log.csv").write_text(TRAINING_LOG.format(first=90.5, second=60.25))
    (tmp_path / "errors.json").write_text(json.dumps(ERRORS))
    (tmp_path / "verify.json").write_text(json.dumps(VERIFY))
    (tmp_path / "md" / "one.log").write_text(lammps_log(-280.125, -283.0625))
    (tmp_path / "md" / "two.log").write_text(lammps_log(-280.125, -283.06250002))
    rng = np.random.default_rng(0)
    forces = rng.normal(size=(63, 3, 2))
    np.savez(tmp_path / "values.npz", energy=np.array([[-4.5, -4.45], [-4.25, -4.3]]), forces=forces)
    atoms = bulk("Si", "diamond", 5.43, cubic=True).repeat(2)
    atoms.numbers[40] = 32
    del atoms[0]
    for name in ("defect.data", "one.relaxed.data"):
        path = tmp_path / "md" / name
        write(path, atoms, format="lammps-data", specorder=["Si", "Ge"], masses=True, units="metal", atom_style="atomic")
    return tmp_path


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Figure]]:
    """The figures by name, as they are saved."""
    found: dict[str, Figure] = {}
    plain = pictures._save

    def save(figure: Figure, out: Path) -> Path:
        found[out.stem] = figure
        return plain(figure, out)

    monkeypatch.setattr(pictures, "_save", save)
    return found


def rows(page: str) -> list[list[str]]:
    """The cells of all tables."""
    found = [re.findall(r"<t[dh]>(.*?)</t[dh]>", row, re.DOTALL) for row in re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)]
    return [[html.unescape(cell) for cell in row] for row in found]


def test_the_numbers_are_those_of_the_files(demo: Path) -> None:
    path = report.write_report(demo)
    page = path.read_text(encoding="utf-8")
    table = {row[0]: row[1:] for row in rows(page)}
    assert table["this model"] == ["3.25", "78.1", "9.88", "1.5"]
    assert table["same budget, no streams"] == ["6.5", "99.5", "12.6", "2.75"]
    assert table["predicting nothing"] == ["41.5", "791", "100", "–"]
    assert table["aoti"] == ["eager", "1.1e-13", "2.2e-12", "3.3e-11", "1.0e-09"]
    assert table["torchscript"] == ["eager", "0.0e+00", "4.4e-12", "5.5e-11", "1.0e-09"]
    drift = f"{SLOPE / 63:.1e}"
    assert table["1 rank"] == ["-280.12500000", "-283.06250000", "300", drift]
    assert table["2 ranks"] == ["-280.12500000", "-283.06250002", "300", drift]
    assert "Molecular dynamics of 63 atoms" in page
    for name, _, command in report.STEPS:
        assert table[name] == [f"<code>{command}</code>"]


def test_the_pictures_are_inside_and_beside(demo: Path) -> None:
    page = report.write_report(demo).read_text(encoding="utf-8")
    inside = dict(re.findall(r'alt="(\w+)" src="data:image/png;base64,([^"]+)"', page))
    assert set(inside) == {"parity", "learning", "drift", "defect"}
    for name, content in inside.items():
        beside = (demo / f"{name}.png").read_bytes()
        assert base64.b64decode(content) == beside
        assert beside.startswith(b"\x89PNG")
        assert len(beside) > 5000
    assert "http" not in page  # nothing is fetched from anywhere
    assert not list(demo.glob(".*"))


@pytest.mark.parametrize(("name", "file", "command"), report.STEPS, ids=[s[0] for s in report.STEPS])
def test_a_missing_step_is_one_line(name: str, file: str, command: str, demo: Path) -> None:
    (demo / file).unlink()
    with pytest.raises(UserError) as caught:
        report.write_report(demo)
    line = str(caught.value)
    assert line == f"{demo / file} does not exist; expected the result of step '{name}': {command}"
    assert "\n" not in line
    assert not (demo / "report.html").exists()


def test_a_run_of_lammps_that_failed(demo: Path) -> None:
    (demo / "md" / "two.log").write_text("LAMMPS (22 Jul 2025)\nERROR: Cannot open file\n")
    with pytest.raises(UserError, match=r"two\.log holds no thermo table; look at its end"):
        report.write_report(demo)


def test_a_data_file_without_atoms(demo: Path) -> None:
    (demo / "md" / "defect.data").write_text("hello\n")
    with pytest.raises(UserError, match="declares no number of atoms"):
        report.write_report(demo)


def test_what_is_read_from_logs(demo: Path) -> None:
    runs = report.read_thermo(demo / "md" / "one.log")
    assert [len(r["Step"]) for r in runs] == [2, 21, 30]
    assert runs[0]["PotEng"].tolist() == [-280.125, -283.0625]
    assert report.drift(runs[2], 63) == pytest.approx(SLOPE / 63, rel=1e-6)
    columns = report.read_log(demo / "run")
    assert {k: v.tolist() for k, v in columns.items()} == {
        "step": [100, 200],
        "val_forces_rmse": [80.5, 40.25],
        "val_energy_rmse": [6.25, 3.5],
    }
    assert report.count_atoms(demo / "md" / "defect.data") == 63


def test_parity_shows_labels_across_and_predictions_up(demo: Path, drawn: dict[str, Figure]) -> None:
    pictures.parity(demo / "values.npz", demo / "parity.png")
    energy, force = drawn["parity"].axes
    line, points = energy.lines
    np.testing.assert_array_equal(points.get_xydata(), [[-4.5, -4.45], [-4.25, -4.3]])
    np.testing.assert_array_equal(line.get_xydata(), [[-4.5, -4.5], [-4.25, -4.25]])
    assert "labelled" in energy.get_xlabel()
    assert "predicted" in energy.get_ylabel()
    assert force.lines[1].get_xydata().shape == (63 * 3, 2)


def test_curves(demo: Path, drawn: dict[str, Figure]) -> None:
    runs = {"with": report.read_log(demo / "run"), "without": report.read_log(demo / "baseline")}
    pictures.learning(runs, demo / "learning.png")
    (axes,) = drawn["learning"].axes
    assert {str(c.get_label()): c.get_xydata().tolist() for c in axes.lines} == {
        "with": [[100, 80.5], [200, 40.25]],
        "without": [[100, 90.5], [200, 60.25]],
    }
    thermos = {"1 rank": report.read_thermo(demo / "md" / "one.log")}
    pictures.energies(thermos, 63, demo / "drift.png")
    (axes,) = drawn["drift"].axes
    time, change = axes.lines[0].get_xydata().T
    np.testing.assert_allclose(change, 1e6 * SLOPE * time / 63, atol=1e-3)
    assert time[-1] == pytest.approx(0.29)


def test_the_defect_is_found(demo: Path, drawn: dict[str, Figure]) -> None:
    """A vacancy leaves four atoms with three neighbours; the guest is counted as a guest."""
    pictures.defect(demo / "md" / "one.relaxed.data", demo / "defect.png")
    (axes,) = drawn["defect"].axes
    legend = axes.get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == ["58 four-fold", "4 not four-fold", "1 of another element"]
