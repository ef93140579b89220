"""What ``tfdeploy run`` does with its options, and what it prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from triforces_deploy.errors import UserError
from triforces_deploy.running.campaign import read_campaign, run_all
from triforces_deploy.running.gather import gather
from triforces_deploy.running.job_array import write_array
from triforces_deploy.running.run import Options, run
from triforces_deploy.running.summary import Summary
from triforces_deploy.stopping import watched_signals
from triforces_deploy.tables import record


@dataclasses.dataclass(frozen=True)
class Printed:
    """What the command line shows."""

    code: int
    """Exit code."""
    message: str
    """Its reason in one line."""
    tables: list[Table]
    data: Any
    """The tables as plain data."""


def run_input(script: Path | None, options: Options, quiet: bool) -> Printed:
    """One input."""
    if script is None or script.name.startswith("-"):
        raise UserError("name the LAMMPS input first, e.g. `tfdeploy run in.defect --ranks 4 -v temperature 600`")
    outcome = run(script, options, progress=not quiet)
    picture = None if outcome.picture is None else str(outcome.picture)
    data = {**record(outcome.summary), "exit_code": outcome.code, "message": outcome.message, "picture": picture}
    return Printed(outcome.code, outcome.message, [summary_table(outcome.summary, outcome.picture)], data)


def run_campaign(path: Path, options: Options, slurm: Path | None, number: int | None, quiet: bool) -> Printed:
    """A campaign: all its jobs here, the script of an array, or the one job ``number`` of it."""
    campaign, jobs = read_campaign(path, options)
    options = dataclasses.replace(options, ranks=campaign.ranks)
    if slurm is not None:
        written = write_array(path, campaign, len(jobs), slurm)
        table = Table(f"{written}: {len(jobs)} tasks. Submit it: sbatch {written}", box=None)
        return Printed(0, "", [table], {"script": str(written), "jobs": [job.id for job in jobs]})
    if number is not None:
        if not 0 <= number < len(jobs):
            raise UserError(f"--job {number}: {path} has jobs 0 to {len(jobs) - 1}")
        return run_input(jobs[number].script.path, jobs[number].options(options), quiet)
    console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
    out = jobs[0].folder.parent
    out.mkdir(parents=True, exist_ok=True)
    with watched_signals() as asked:
        run_all(campaign, jobs, options, lambda line: console.print(line, markup=False), asked)
    rows = gather(jobs, out)
    left = sum(row["status"] != "done" for row in rows)
    code = 128 + asked[0] if asked else 1 if left else 0
    message = f"{left} of {len(rows)} jobs are not done; the same command goes on with them"
    return Printed(code, message, [campaign_table(rows, tuple(jobs[0].variables), out)], rows)


def summary_table(summary: Summary, picture: Path | None) -> Table:
    """A run in two columns."""
    table = Table(title=f"{summary.name}: {'done' if summary.done else 'not done'}", show_header=False, title_justify="left")
    temperature = f"{_number(summary.mean_temperature, '.1f')} ± {_number(summary.sd_temperature, '.1f')} K"
    rows: Sequence[tuple[str, str]] = (
        ("steps", _number(summary.step, "d")),
        ("atoms", _number(summary.atoms, "d")),
        ("wall time", f"{summary.wall_s:.1f} s in {summary.starts} start{'s' if summary.starts > 1 else ''}"),
        ("speed", f"{_number(summary.ns_per_day, '.3g')} ns/day"),
        ("temperature, last run", temperature),
        ("drift, last run", f"{_number(summary.drift, '.2g')} meV/atom/ps"),
        ("warnings", f"{summary.warnings}" + (f", most often: {summary.warning}" if summary.warnings else "")),
        ("picture", str(picture or "–")),
    )
    for row in rows:
        table.add_row(*row)
    return table


def campaign_table(rows: Sequence[dict[str, Any]], variables: Sequence[str], out: Path) -> Table:
    """A line for each job."""
    table = Table(title=f"{out}: table.csv, campaign.html", title_justify="left")
    for heading in ("job", *variables, "status", "steps", "ns/day", "mean T, K", "drift, meV/atom/ps", "remark"):
        table.add_column(heading)
    for row in rows:
        figures = (_number(row["step"], "d"), _number(row["ns_per_day"], ".3g"), _number(row["mean_temperature"], ".1f"))
        cells = (row["job"], *(row[name] for name in variables), row["status"], *figures, _number(row["drift"], ".2g"))
        table.add_row(*cells, row["message"])
    return table


def _number(value: float | None, spec: str) -> str:
    return "–" if value is None else format(value, spec)
