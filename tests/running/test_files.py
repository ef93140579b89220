"""Restarts judged, dumps cut, logs spliced: on files as LAMMPS writes them, against plain reading of their text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.running.small import thermo
from triforces_deploy.running import dumps, logs
from triforces_deploy.running.restarts import DamagedError, Note, judged, note, restart_step
from triforces_deploy.running.script import Dump
from triforces_deploy.running.summary import summarise


@pytest.fixture
def custom(reference: Path, tmp_path: Path) -> Dump:
    path = tmp_path / "md.dump"
    path.write_bytes((reference / "md.dump").read_bytes())
    return Dump("1", path, 100)


@pytest.mark.parametrize("step", [0, 1, 400, 950, 2000, 2001])
def test_frames_from_a_step_on_are_cut_off(custom: Dump, step: int) -> None:
    before = custom.path.read_text()
    assert dumps.missing(custom, step) is None
    dumps.cut(custom, step)
    after = custom.path.read_text()
    assert before.startswith(after)
    kept = [int(s) for s in re.findall(r"TIMESTEP\n(\d+)\n", after)]
    assert kept == [s for s in range(0, 2001, 100) if s < step]
    assert after == "" or after.endswith("\n")


@pytest.mark.parametrize("lost", [1, 20, 2000])
def test_a_half_written_last_frame(custom: Dump, lost: int) -> None:
    """Cut away where it is written again, missed where it is not."""
    content = custom.path.read_bytes()
    custom.path.write_bytes(content[:-lost])
    assert dumps.missing(custom, 2000) is None
    gap = dumps.missing(custom, 2001)
    assert gap is not None
    assert gap.startswith("frames of md.dump between steps")
    dumps.cut(custom, 2000)
    assert custom.path.read_bytes() == content[: content.rindex(b"ITEM: TIMESTEP")]


def test_frames_that_are_gone(custom: Dump) -> None:
    content = custom.path.read_bytes()
    custom.path.write_bytes(content[: content.index(b"ITEM: TIMESTEP\n900\n")])
    assert dumps.missing(custom, 900) is None
    assert dumps.missing(custom, 1200) == "frames of md.dump between steps 800 and 1200"


def test_xyz_and_a_file_for_each_frame(tmp_path: Path) -> None:
    atoms = "Si 0 0 0\nSi 1 1 1\n"
    whole = [f"2\n Atoms. Timestep: {step}\n{atoms}" for step in range(0, 500, 100)]
    path = tmp_path / "md.xyz"
    path.write_text("".join(whole)[:-3])
    dump = Dump("1", path, 100)
    assert dumps.missing(dump, 400) is None
    assert dumps.missing(dump, 401) is not None
    dumps.cut(dump, 300)
    assert path.read_text() == "".join(whole[:3])
    for step in (0, 100, 1000):
        (tmp_path / f"f.{step}.dump").touch()
    (tmp_path / "f.x.dump").touch()
    dumps.cut(Dump("2", tmp_path / "f.*.dump", 100), 100)
    assert sorted(p.name for p in tmp_path.glob("f.*")) == ["f.0.dump", "f.x.dump"]


def test_the_step_of_a_restart(reference: Path) -> None:
    assert [restart_step(reference / f"md.restart.{x}") for x in "ab"] == [2000, 1600]


@pytest.mark.parametrize("cut", [0, 10, 100, 3000, -1])
def test_a_restart_that_is_cut_off(reference: Path, tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x.restart"
    path.write_bytes((reference / "md.restart.a").read_bytes()[:cut])
    with pytest.raises(DamagedError, match="is cut off or no restart"):
        restart_step(path)


def test_a_restart_is_believed_by_its_note(reference: Path, tmp_path: Path) -> None:
    """One flipped bit is found; what nobody noted counts only while the machine stays up."""
    content = bytearray((reference / "md.restart.a").read_bytes())
    path = tmp_path / "x.restart"
    path.write_bytes(content)
    own = note(path, [tmp_path / "none"])
    assert own is not None
    assert own.step == 2000
    assert judged(path, [Note(400, "0"), own], same_boot=False).step == 2000
    with pytest.raises(DamagedError, match="perhaps not on the disk"):
        judged(path, [], same_boot=False)
    assert judged(path, [], same_boot=True).step == 2000
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match="has changed since it was written at step 2000"):
        judged(path, [own], same_boot=True)


def test_a_log_in_three_parts(reference: Path, tmp_path: Path) -> None:
    """Cut anywhere and put together again, it holds the lines of the whole one."""
    whole = (reference / "md.log").read_text()
    marks = {
        step: whole.index(next(line for line in whole.splitlines() if line.startswith(f"{step:>10} "))) for step in (800, 1200)
    }
    first = whole.index("Per MPI rank")
    head = "LAMMPS\nread_restart x\n" + whole[first : whole.index("\n", whole.index("Step", first)) + 1]
    parts: list[tuple[Path, int | None]] = []
    for k, (start, end) in enumerate([(None, 1200), (800, None), (1200, None)]):
        text = (head + whole[marks[start] :]) if start else whole[: marks[1200] + 300 if end else None]
        (tmp_path / f"{k}").write_text(text[:-7] if k < 2 else text)
        parts.append((tmp_path / f"{k}", start))
    logs.splice(parts, tmp_path / "log")
    assert (tmp_path / "log").read_text() == whole
    assert logs.last_before(tmp_path / "log", 801) == 800
    assert logs.last_before(tmp_path / "log", 800) == 750


def test_a_log_read_while_it_grows(reference: Path, tmp_path: Path) -> None:
    content = (reference / "md.log").read_bytes()
    follower = logs.Follower(tmp_path / "log")
    assert follower.poll().step is None
    for size in range(0, len(content) + 999, 999):
        (tmp_path / "log").write_bytes(content[:size])
        follower.poll()
    assert follower.reader == logs.read_log(reference / "md.log")
    rows = [row for table in follower.reader.tables for row in table.rows]
    assert rows == [tuple(line) for line in thermo(reference / "md.log")]


def test_figures_of_a_log(tmp_path: Path) -> None:
    """Slope, mean and speed put in by hand."""
    rows = "".join(f" {10 * k} {0.01 * k} {300 + 20 * (k % 2)} {-50 + 0.002 * 0.01 * k}\n" for k in range(10))
    table = "   Step Time Temp TotEng\n" + rows + "Loop time of 8.64 on 2 procs for 90 steps with 4 atoms\n"
    (tmp_path / "log").write_text("WARNING: odd (src/x.cpp:3)\n" + table + "WARNING: odd (src/x.cpp:4)\n")
    summary = summarise(logs.read_log(tmp_path / "log"), "x", "metal", True, 1, 9.0)
    assert summary.drift == pytest.approx(0.002 * 1000 / 4, rel=1e-6)
    assert summary.ns_per_day == pytest.approx(0.09e-3 / 8.64 * 86400)
    assert (summary.mean_temperature, summary.sd_temperature) == (310, 10)
    assert (summary.step, summary.atoms, summary.warnings, summary.warning) == (90, 4, 2, "odd")
    lj = summarise(logs.read_log(tmp_path / "log"), "x", "lj", True, 1, 9.0)
    assert (lj.drift, lj.ns_per_day) == (None, None)
