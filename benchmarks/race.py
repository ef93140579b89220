"""Ours against the packages whose models we import: same structure, weights, threads and precision, one process each.

    python benchmarks/race.py --python mace=ENV/bin/python … [--cases mace-medium …] [--atoms 216 …] [--precision float32]

``--python`` names the interpreter that has a package. The first package of a case makes a model of its canonical size with
random weights; ours imports that very file, but for Orb-v3, of which each has random weights of its own. An evaluation gives
energy, forces and stress of silicon, rattled, from a neighbour list that is there already. Processes alternate, so that a busy
machine is unfair to all alike, except with ``--apart``; with one thread time is that of the processor. Memory is the peak over
what the process held before its first evaluation. Adds a line per contender and size to results/race.jsonl, from which
race_table.py makes a table and a picture.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from race_table import RESULTS, table

HERE = Path(__file__).parent
MACE = ("race_mace.py", ("eager", "torchscript", "compile", "lammps", "lammps-mliap"))
OURS = ("aoti", "lean", "eager", "blocks-16MiB")


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and those that run it, or one of about its size."""

    model: str
    """Folder of the first rival's file, which ours imports; up to the dash the kind of `tfdeploy import`."""
    rivals: dict[str, tuple[str, tuple[str, ...]]]
    """Package → the script that runs it, and its forms."""


CASES = {
    "mace-small": Case("mace-small", {"mace": MACE}),
    "mace-medium": Case("mace-medium", {"mace": MACE}),
    "esen-sm": Case("esen-sm", {"esen": ("race_esen.py", ("eager", "checkpointed", "fast"))}),
    "orb-v3": Case("orb-v3", {"orb": ("race_orb.py", ("eager", "compile"))}),
    # Nothing is imported from the last two: who costs what, not who computes the same faster.
    "others": Case(
        "mace-medium",
        {
            "mace": ("race_mace.py", ("eager",)),
            "nequip": ("race_nequip.py", ("S-eager", "S-aoti", "M-eager", "M-torchscript", "M-aoti")),
            "sevenn": ("race_sevenn.py", ("eager", "torchscript")),
        },
    ),
}


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
    parser.add_argument("--python", nargs="+", required=True, help="PACKAGE=INTERPRETER")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--atoms", type=int, nargs="+", default=[216])
    parser.add_argument("--precision", nargs="+", default=["float32"])
    parser.add_argument("--theirs", nargs="*", help="forms of the rivals; all where left out")
    parser.add_argument(
        "--ours", nargs="*", default=OURS, help="forms; blocks-SIZE is eager with so much memory for all that it keeps"
    )
    parser.add_argument("--folder", type=Path, help="where models and compiled forms are kept for the next race")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5, help="after the first evaluation, which counts only if it is 0")
    parser.add_argument("--apart", action="store_true", help="one process after the other, where memory is short")
    options = parser.parse_args()
    options.python = dict(item.split("=", 1) for item in options.python)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        for name in options.cases:
            rows = list(race(name, CASES[name], folder / CASES[name].model, options))
            with (RESULTS / "race.jsonl").open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
            print(table(rows))


def race(name: str, case: Case, folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every form of all, at every size and precision."""
    (first, (script, _)) = next(iter(case.rivals.items()))
    if not folder.is_dir():
        once(Contender(options.python[first], script, ["make", str(folder)], options.threads))
    for precision in options.precision:
        # Here, because compiling would leave its own memory in the process that is measured.
        once(Contender(sys.executable, "race_ours.py", ["make", str(folder), precision, *options.ours], options.threads))
        for n_atoms in options.atoms:
            common = {"case": name, "precision": precision, "atoms": n_atoms, "threads": options.threads}
            for found in meet(case, [str(folder), precision, str(n_atoms)], options):
                yield common | found


def meet(case: Case, where: list[str], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The contenders of one size, in turns or one after the other."""
    entered = [
        (who, form, options.python[who], script)
        for who, (script, forms) in case.rivals.items()
        for form in forms
        if options.theirs is None or form in options.theirs
    ]
    entered += [("ours", form, sys.executable, "race_ours.py") for form in options.ours]
    groups = [[one] for one in entered] if options.apart else [entered]
    for group in groups:
        contenders = {(w, f): Contender(python, file, ["run", *where, f], options.threads) for w, f, python, file in group}
        answers = {who: [contender.ask()] for who, contender in contenders.items()}
        for _ in range(options.repeats):
            for who, contender in contenders.items():
                if "error" not in answers[who][-1]:
                    answers[who].append(contender.ask())
        for contender in contenders.values():
            contender.end()
        for who, found in answers.items():
            yield summary(who, found)


def once(contender: Contender) -> None:
    answered = contender.ask()
    contender.end()
    assert "error" not in answered, answered


def summary(who: tuple[str, str], answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians without the first evaluation, which compiles or warms up, unless it is the only one."""
    found: dict[str, Any] = {"who": who[0], "form": who[1]}
    if "error" in answers[-1]:
        return found | {"error": answers[-1]["error"]}
    counted = answers[1:] or answers
    seconds = statistics.median(a["seconds"] for a in counted)
    peak = max(a["peak_bytes"] for a in counted)
    return found | {"seconds": seconds, "peak_bytes": peak, "energy": counted[-1]["energy"], "force": counted[-1]["force"]}


if __name__ == "__main__":
    main()
