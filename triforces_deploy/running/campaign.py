"""Sweeps: every input with every combination of variables, each a run of its own that can be killed and continued."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import itertools
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from triforces_deploy.config import read, read_yaml
from triforces_deploy.errors import UserError
from triforces_deploy.running import state as states
from triforces_deploy.running.processes import program
from triforces_deploy.running.run import Options
from triforces_deploy.running.script import Script, read_script
from triforces_deploy.running.summary import Summary

LOOK = 0.1
"""Seconds between two looks at the jobs."""
PATIENCE = 6.0
"""Seconds that a job gets to end its ranks."""


@dataclasses.dataclass(frozen=True)
class Campaign:
    """What a campaign file says."""

    inputs: tuple[str, ...]
    """LAMMPS inputs, relative to the file."""
    sweep: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Index variable of the inputs → list of values; every combination is a job."""
    out: str = "campaign"
    """Folder of the results, relative to the file; each job gets a folder in it."""
    ranks: int = 1
    """Of each job."""
    at_once: int = 0
    """Jobs at a time; 0: as many as the cores hold."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a campaign."""

    id: str
    script: Script
    variables: dict[str, str]
    """Of the sweep."""
    folder: Path

    def state(self) -> states.State | None:
        """What is known of it so far; None before its first start."""
        return states.load(self.script)

    @property
    def done(self) -> bool:
        """Nothing is left to do."""
        state = self.state()
        return state is not None and state.done and state.script == states.fresh(self.script).script

    def options(self, options: Options) -> Options:
        """Those of the campaign, and the variables of this job."""
        own = {"name": str(self.script.prefix), **self.variables}
        words = tuple(word for name, value in own.items() for word in ("-v", name, value))
        return dataclasses.replace(options, arguments=(*options.arguments, *words))


def read_campaign(path: Path, options: Options) -> tuple[Campaign, list[Job]]:
    """The jobs of a campaign file.

    Raises:
        UserError: an unknown key, a missing input, or a variable that an input does not read.
    """
    campaign = read(Campaign, read_yaml(path), str(path))
    values = {name: _values(path, name, value) for name, value in campaign.sweep.items()}
    out = (path.parent / campaign.out).resolve()
    jobs = []
    for script in campaign.inputs:
        for combination in itertools.product(*values.values()):
            variables = dict(zip(values, combination, strict=True))
            words = [*([Path(script).parent.name or Path(script).stem] if len(campaign.inputs) > 1 else [])]
            own = "-".join([*words, *(f"{name}{value}" for name, value in variables.items())]).replace("/", "_") or "run"
            given = {**options.variables(), **variables, "name": str(out / own / "run")}
            job = Job(own, read_script(path.parent / script, given), variables, out / own)
            _check(path, script, job)
            jobs.append(job)
    if " " in str(out):
        raise UserError(f"{path}: LAMMPS cannot write to '{out}' because of the blank; choose another folder with `out`")
    twice = next((job.id for k, job in enumerate(jobs) if job.id in [j.id for j in jobs[:k]]), None)
    if twice is not None or not jobs:
        what = f"two jobs are called '{twice}'; put the inputs into folders with different names" if twice else "no jobs"
        raise UserError(f"{path}: {what}")
    return campaign, jobs


def _values(path: Path, name: str, value: object) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(v, str | int | float) for v in value):
        raise UserError(f"{path}: sweep.{name}: expected a list of values, e.g. [300, 600]")
    return [str(v) for v in value]


def _check(path: Path, script: str, job: Job) -> None:
    known = job.script.variables
    columns = ("job", "status", "message", *(field.name for field in dataclasses.fields(Summary)))
    for name in (*job.variables, "name"):
        if name in columns and name in job.variables:
            raise UserError(f"{path}: sweep.{name}: the table has a column of this name; call the variable otherwise")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UserError(f"{path}: {script} has no `variable {name} index …`{hint}")


def run_all(
    campaign: Campaign, jobs: Sequence[Job], options: Options, say: Callable[[str], None], asked: Sequence[int]
) -> None:
    """Run what is not done yet, some jobs at a time, each by a ``tfdeploy run`` of its own.

    Args:
        campaign: what the file says.
        jobs: of it.
        options: for all jobs.
        say: gets a line when a job starts or ends.
        asked: holds a signal once the user wants to stop; the jobs at work are then ended.
    """
    cores = os.cpu_count() or 1
    at_once = campaign.at_once or max(1, cores // campaign.ranks)
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // (at_once * campaign.ranks)))
    waiting = [job for job in jobs if options.fresh or not job.done]
    working: dict[str, subprocess.Popen[bytes]] = {}
    say(f"{len(jobs)} jobs, {len(jobs) - len(waiting)} done already, {at_once} at a time")
    try:
        while (waiting or working) and not asked:
            while waiting and len(working) < at_once:
                job = waiting.pop(0)
                working[job.id] = _start(job, options, threads)
                say(f"{job.id}: started")
            for name in [name for name, process in working.items() if process.poll() is not None]:
                code = working.pop(name).returncode
                say(f"{name}: {'done' if code == 0 else 'failed'}")
            time.sleep(LOOK)
    finally:
        _end(list(working.values()))


def _start(job: Job, options: Options, threads: str) -> subprocess.Popen[bytes]:
    job.folder.mkdir(parents=True, exist_ok=True)
    own = job.options(options)
    flags = ["--ranks", str(own.ranks), "--json", *(["--fresh"] if own.fresh else [])]
    flags += [word for name, value in (("--lmp", own.lmp), ("--launcher", own.launcher)) if value for word in (name, value)]
    command = [program("tfdeploy", "PATH"), "run", str(job.script.path), *flags, *own.arguments]
    with (job.folder / "job.out").open("wb") as out, (job.folder / "job.err").open("wb") as err:
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
