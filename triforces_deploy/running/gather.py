"""All jobs of a campaign in one table and on one page."""

from __future__ import annotations

import csv
import html
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from triforces_deploy.files import replacing
from triforces_deploy.page import image, write_page
from triforces_deploy.page import table as html_table
from triforces_deploy.running.campaign import Job
from triforces_deploy.running.logs import read_log
from triforces_deploy.running.summary import summarise
from triforces_deploy.tables import record

PICTURES = 24
"""Of so many jobs at most the page holds pictures; they lie in the folders of the jobs anyway."""
SHOWN = ("job", "status", "step", "ns_per_day", "mean_temperature", "drift", "message")


def gather(jobs: Sequence[Job], out: Path) -> list[dict[str, Any]]:
    """Write ``table.csv``, ``table.parquet`` where pyarrow is installed, and ``campaign.html`` into ``out``.

    Returns:
        One row per job: its variables, status and summary, and the mean of every thermo column over its last run.
    """
    rows = [_row(job) for job in jobs]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(out / "table.csv") as part, part.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)
    if find_spec("pyarrow"):
        _parquet(rows, columns, out / "table.parquet")
    shown = [name for name in columns if name in SHOWN or name in jobs[0].variables]
    cells = [[html.escape(_text(row.get(name))) for name in shown] for row in rows]
    pictures = [job.script.file("png") for job in jobs[:PICTURES]]
    sections = [f"<h2>{html.escape(j.id)}</h2>{image(p)}" for j, p in zip(jobs, pictures, strict=False) if p.is_file()]
    write_page(out / "campaign.html", out.name, [f"<h1>{html.escape(out.name)}</h1>", html_table(shown, cells), *sections])
    return rows


def _row(job: Job) -> dict[str, Any]:
    state = job.state()
    log = read_log(job.script.file("log"))
    starts = state.starts if state else ()
    done = state is not None and state.done
    summary = record(summarise(log, job.id, job.script.units, done, len(starts), sum(s.seconds for s in starts)))
    status = "done" if done else "waiting" if state is None else "failed" if state.message else "unfinished"
    last = next((t for t in reversed(log.tables) if len(t.rows) > 2), None)
    means = dict(zip(last.columns, np.mean(last.rows, axis=0), strict=True)) if last else {}
    figures = {name: value for name, value in summary.items() if name not in ("name", "done")}
    return {
        "job": job.id,
        **job.variables,
        "status": status,
        **figures,
        "message": state.message if state else _complaint(job),
        **{f"mean {name}": float(value) for name, value in means.items() if name not in ("Step", "Time")},
    }


def _complaint(job: Job) -> str:
    """Why a job has not even started: the last line it said."""
    path = job.folder / "job.err"
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    return lines[-1].removeprefix("tfdeploy: ") if lines else ""


def _parquet(rows: Sequence[dict[str, Any]], columns: Sequence[str], out: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({name: [row.get(name) for row in rows] for name in columns})
    with replacing(out) as part:
        pyarrow.parquet.write_table(table, part)


def _text(value: object) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
