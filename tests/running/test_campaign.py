"""Sweeps: every combination runs once, what was killed goes on, and all ends in one table."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.running.faults import TFDEPLOY
from tests.running.small import thermo, write_case

FILE = """\
inputs: [in.md]
sweep: {temperature: [100, 200], seed: [1, 2]}
out: sweep
at_once: 2
"""
JOBS = [f"temperature{t}-seed{s}" for t in (100, 200) for s in (1, 2)]


def tfdeploy(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [TFDEPLOY, "run", "--campaign", "sweep.yaml", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=250, check=False)


def write_campaign(folder: Path) -> None:
    text = write_case(folder).read_text()
    (folder / "in.md").write_text(text.replace("1500", "300").replace("1000", "200").replace("2000", "400"))
    (folder / "sweep.yaml").write_text(FILE)


def rows(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "sweep" / "table.csv").open() as stream:
        return {row["job"]: row for row in csv.DictReader(stream)}


def test_a_sweep_that_is_killed_goes_on(tmp_path: Path) -> None:
    """Killed when two jobs are at work; they go on, the others start, and nothing runs twice."""
    write_campaign(tmp_path)
    (tmp_path / "pause").touch()
    process = subprocess.Popen([TFDEPLOY, "run", "--campaign", "sweep.yaml"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    limit = time.monotonic() + 120
    logs = [tmp_path / "sweep" / job / "run.log.1" for job in JOBS[:2]]
    while not all(log.is_file() and "shell sh pause.sh" in log.read_text() for log in logs) and time.monotonic() < limit:
        time.sleep(0.1)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 143
    assert "4 jobs, 0 done already, 2 at a time" in err
    assert "tfdeploy: 4 of 4 jobs are not done; the same command goes on with them" in err
    assert [rows(tmp_path)[job]["status"] for job in JOBS] == ["unfinished", "unfinished", "waiting", "waiting"]

    (tmp_path / "pause").unlink()
    done = tfdeploy(tmp_path)
    assert done.returncode == 0, done.stderr
    table = rows(tmp_path)
    assert list(table) == JOBS
    assert {row["status"] for row in table.values()} == {"done"}
    assert {row["step"] for row in table.values()} == {"400"}
    for job, row in table.items():
        assert row["starts"] == ("2" if job in JOBS[:2] else "1")
        last = thermo(tmp_path / "sweep" / job / "run.log")[-3:]
        assert float(row["mean PotEng"]) == pytest.approx(sum(line[3] for line in last) / 3)
        assert row["mean_temperature"] == row["mean Temp"]
        assert row["temperature"] == job.split("-")[0].removeprefix("temperature")
    page = (tmp_path / "sweep" / "campaign.html").read_text()
    assert page.count("data:image/png") == 4
    again = tfdeploy(tmp_path, "--json")
    assert "4 jobs, 4 done already" not in again.stderr  # quiet
    assert [row["starts"] for row in json.loads(again.stdout)] == [2, 2, 1, 1]


def test_a_job_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    write_campaign(tmp_path)
    (tmp_path / "sweep.yaml").write_text(FILE.replace("[100, 200]", "[-5, 100]").replace("[1, 2]", "[1]"))
    done = tfdeploy(tmp_path, "--json")
    assert done.returncode == 1
    bad, good = json.loads(done.stdout)
    assert (bad["status"], good["status"]) == ("failed", "done")
    assert bad["message"].startswith("ERROR")
    assert done.stderr.splitlines()[-1] == "tfdeploy: 1 of 2 jobs are not done; the same command goes on with them"


def test_the_script_of_a_job_array_runs_one_job(tmp_path: Path) -> None:
    write_campaign(tmp_path)
    assert tfdeploy(tmp_path, "--slurm", "array.sh").returncode == 0
    text = (tmp_path / "array.sh").read_text()
    assert "#SBATCH --array=0-3\n" in text
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "2"}
    done = subprocess.run(
        ["bash", "array.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [p.name for p in (tmp_path / "sweep").iterdir()] == [JOBS[2]]
    assert thermo(tmp_path / "sweep" / JOBS[2] / "run.log")[-1][0] == 400


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sweep: {}\n", "missing key 'inputs'"),
        (FILE.replace("seed", "sed"), "in.md has no `variable sed index …`; did you mean 'seed'?"),
        (FILE.replace("[1, 2]", "1"), "sweep.seed: expected a list of values, e.g. [300, 600]"),
        (FILE.replace("seed", "step"), "sweep.step: the table has a column of this name"),
        (FILE.replace("in.md", "in.none"), "in.none does not exist; expected a LAMMPS input"),
        (FILE.replace("[in.md]", "[in.md, in.md]"), "two jobs are called"),
        (FILE.replace("[in.md]", "[]"), "no jobs"),
        (FILE.replace("out: sweep", "out: s p"), "because of the blank"),
        (FILE + "atonce: 2\n", "unknown key 'atonce'; did you mean 'at_once'?"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(text: str, message: str, tmp_path: Path) -> None:
    write_campaign(tmp_path)
    (tmp_path / "sweep.yaml").write_text(text)
    done = tfdeploy(tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert message in line
    assert not (tmp_path / "sweep").exists()
