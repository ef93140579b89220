"""Ours against the packages whose models we import: same structure, weights, threads and precision, one process each.

    python benchmarks/race.py --python mace=ENV/bin/python [--atoms 64 216 …] [--precision float32] [--threads 1]

``--python`` names the interpreter that has a rival's package; there may be several. Each rival makes a model of its canonical
size with random weights; ours imports that very file. An evaluation gives energy, forces and stress of silicon, rattled,
from a neighbour list that is there already. Processes alternate, so that a busy machine is unfair to all alike; with one
thread time is that of the processor. Memory is the peak over what the process held before its first evaluation. Writes
results/race.jsonl, a line per contender and size, from which race_table.py makes a table and a picture.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
RIVALS = {
    "esen": ("race_esen.py", ("eager", "fast")),
    "mace": ("race_mace.py", ("eager", "torchscript", "compile")),
    "orb": ("race_orb.py", ("eager", "compile")),
}
"""Kind of `tfdeploy import` → the script that runs the rival, and its forms."""
OURS = ("race_ours.py", ("aoti", "torchscript", "eager", "blocks"))
"""'blocks' is eager with next to no memory for what the backward pass would find useful."""


class Contender:
    """A process that evaluates once for each line it is given."""

    def __init__(self, python: str, script: str, arguments: list[str], threads: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        command = [python, "-W", "ignore", str(HERE / script), *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def ask(self) -> dict[str, Any]:
        """One more evaluation, or what was made, or why there is nothing."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return {"error": "ended"}
        for line in self.process.stdout:
            if line.startswith("{"):  # packages print things while they are imported
                return dict(json.loads(line))
        return {"error": f"ended with code {self.process.wait()}"}

    def end(self) -> None:
        self.process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", required=True, help="RIVAL=INTERPRETER")
    parser.add_argument("--atoms", type=int, nargs="+", default=[64, 216])
    parser.add_argument("--precision", nargs="+", default=["float64", "float32"])
    parser.add_argument(
        "--forms", nargs="+", default=["eager", "fast", "compile", "blocks", "aoti"], help="of both sides, where they have them"
    )
    parser.add_argument("--folder", type=Path, help="where models and compiled forms are kept for the next race")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        for rival, python in (item.split("=", 1) for item in options.python):
            rows += race(rival, python, folder, options)
    (HERE / "results").mkdir(exist_ok=True)
    with (HERE / "results" / "race.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    show(rows)


def race(rival: str, python: str, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every form of both, at every size and precision."""
    script, forms = RIVALS[rival]
    if not (folder / rival).is_dir():
        answered = once(Contender(python, script, ["make", str(folder / rival)], options.threads))
        assert "error" not in answered, answered
    rows = []
    for precision in options.precision:
        for n_atoms in options.atoms:
            entered = [(rival, form, python, script) for form in forms if form in options.forms]
            entered += [("ours", form, sys.executable, OURS[0]) for form in OURS[1] if form in options.forms]
            contenders = {
                (who, form): Contender(
                    interpreter, file, ["run", form, str(folder / rival), precision, str(n_atoms)], options.threads
                )
                for who, form, interpreter, file in entered
            }
            answers: dict[tuple[str, str], list[dict[str, Any]]] = {who: [c.ask()] for who, c in contenders.items()}
            for _ in range(options.repeats):
                for who, contender in contenders.items():
                    if "error" not in answers[who][-1]:
                        answers[who].append(contender.ask())
            for contender in contenders.values():
                contender.end()
            common = {"rival": rival, "precision": precision, "atoms": n_atoms, "threads": options.threads}
            rows += [common | summary(who, found) for who, found in answers.items()]
    return rows


def once(contender: Contender) -> dict[str, Any]:
    answer = contender.ask()
    contender.end()
    return answer


def summary(who: tuple[str, str], answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians without the first evaluation, which compiles or warms up."""
    found: dict[str, Any] = {"who": who[0], "form": who[1]}
    if "error" in answers[-1]:
        return found | {"error": answers[-1]["error"]}
    last = answers[-1]
    seconds = statistics.median(a["seconds"] for a in answers[1:])
    return found | {"seconds": seconds, "peak_bytes": last["peak_bytes"], "energy": last["energy"], "force": last["force"]}


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(title="Energy, forces and stress; ratios are to the rival's first form", title_justify="left")
    for heading in (
        "rival",
        "precision",
        "atoms",
        "who",
        "form",
        "µs/atom",
        "faster",
        "peak MiB",
        "smaller",
        "eV/atom",
        "rms eV/Å",
    ):
        table.add_column(heading, justify="right" if "/" in heading or heading in ("atoms", "faster", "smaller") else "left")
    first: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        case = (row["rival"], row["precision"], row["atoms"])
        base = first.setdefault(case, row)
        start = [row["rival"], row["precision"], str(row["atoms"]), row["who"], row["form"]]
        if "error" in row or "error" in base:
            table.add_row(*start, row.get("error", "no rival to compare with"))
            continue
        ratios = [base[key] / max(row[key], 1e-9) for key in ("seconds", "peak_bytes")]
        per_atom = [row["energy"] / row["atoms"], row["force"]]
        table.add_row(
            *start, f"{row['seconds'] / row['atoms'] * 1e6:.0f}", f"{ratios[0]:.2f}", f"{row['peak_bytes'] / 2**20:.0f}",
            f"{ratios[1]:.1f}", *(f"{x:.9f}" for x in per_atom),
        )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 150).print(table)


if __name__ == "__main__":
    main()
