"""What ``tfdeploy run`` does with its options, and what it prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from triforces_deploy.errors import UserError
from triforces_deploy.running.run import Options, run
from triforces_deploy.running.summary import Summary
from triforces_deploy.tables import record

Printed = tuple[int, str, list[Table], Any]
"""Exit code, its reason in one line, tables, the same as plain data."""


def run_command(script: Path | None, options: Options, quiet: bool) -> Printed:
    """One input."""
    if script is None or script.name.startswith("-"):
        raise UserError("name the LAMMPS input first, e.g. `tfdeploy run in.defect --ranks 4 -v temperature 600`")
    outcome = run(script, options, progress=not quiet)
    picture = None if outcome.picture is None else str(outcome.picture)
    data = {**record(outcome.summary), "exit_code": outcome.code, "message": outcome.message, "picture": picture}
    return outcome.code, outcome.message, [summary_table(outcome.summary, outcome.picture)], data


def summary_table(summary: Summary, picture: Path | None) -> Table:
    """A run in two columns."""
    table = Table(title=f"{summary.name}: {'done' if summary.done else 'not done'}", show_header=False, title_justify="left")
    temperature = f"{_number(summary.temperature, '.1f')} ± {_number(summary.temperature_sd, '.1f')} K"
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


def _number(value: float | None, spec: str) -> str:
    return "–" if value is None else format(value, spec)
