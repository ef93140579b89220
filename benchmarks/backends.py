"""Every form of one model side by side: time, memory, start, export and size, from 64 to 32,768 silicon atoms.

    python benchmarks/backends.py [--recipe demo | --full | --bare] [--atoms 64 512 …] [--precision float32] [--memory 16]

Each form and size has a process of its own, which waits for its turn: the forms alternate, so that a busy machine is unfair to
all alike, and 'x eager' compares within one run. Where they do not fit into --memory together they run one after another.
'blocks' is eager that keeps nothing for its derivative (TFDEPLOY_MEMORY=0), '-lean' what `tfdeploy export --lean` makes.
'default' and 'tuned' are glibc's allocator as it is and as triforces_deploy/allocator.py sets it. Memory is the peak of one
evaluation over what the process held before, per edge. 'made' is `tfdeploy export` of this form alone, verification included;
for compile, which is torch.compile of the captured graph, the first evaluation with an empty cache. Random weights.
Writes results/backends-NAME.jsonl, a line per measurement, and a picture beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from one_backend import silicon
from rich.console import Console
from rich.table import Table

from triforces_deploy import checkpoint
from triforces_deploy.config import ModelConfig
from triforces_deploy.model import Model
from triforces_deploy.training.recipe import load_recipe

FORMS = ("eager", "blocks", "torchscript", "aoti", "aoti-lean", "onnx", "compile")
SIZES = (64, 216, 512, 1000, 2048, 4096, 8192, 16384, 32768)
RESULTS = Path(__file__).parent / "results"
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--recipe", default="demo", help="sizes of a recipe's model")
    model.add_argument("--full", action="store_true", help="the default sizes, for Si, C, Ge")
    model.add_argument("--bare", action="store_true", help="the same without streams")
    parser.add_argument("--atoms", type=int, nargs="+", default=SIZES)
    parser.add_argument("--precision", nargs="+", default=["float64", "float32"])
    parser.add_argument("--forms", nargs="+", default=FORMS, choices=FORMS)
    parser.add_argument("--allocator", nargs="+", default=["default", "tuned"], choices=["default", "tuned"])
    parser.add_argument("--memory", type=float, default=16.0, help="GiB that all processes together may take")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    name = "full" if options.full else "bare" if options.bare else Path(options.recipe).stem
    RESULTS.mkdir(exist_ok=True)
    out = RESULTS / f"backends-{name}.jsonl"
    out.write_text("")
    rows = []
    with tempfile.TemporaryDirectory(prefix="backends-") as scratch:
        for row in measurements(options, Path(scratch)):
            rows.append(row)
            with out.open("a") as stream:
                stream.write(json.dumps({"model": name, "threads": options.threads, **row}) + "\n")
    show(rows, f"{name}, {options.threads} thread(s)")
    picture(rows, name, out.with_suffix(".png"))


def measurements(options: argparse.Namespace, scratch: Path) -> Iterator[dict[str, Any]]:
    """Make every form, then measure from the smallest size up; a row for each form, size, precision and allocator."""
    config = model_config(options)
    torch.manual_seed(0)
    checkpoint.save(scratch / "model.ckpt", Model(config).eval(), {"data": "random weights"})
    for precision in options.precision:
        made = {}
        for form in options.forms:
            answer = Child(options, scratch, form, precision).last()
            if "error" in answer:
                print(f"{form} {precision} skipped: {answer['error']}", flush=True)
            else:
                made[form] = answer
                print(f"{form} {precision} made in {answer['made_s']:.1f} s", flush=True)
        per_edge = dict.fromkeys(made, max((m["bound_bytes_per_edge"] for m in made.values()), default=0.0))
        for n_atoms in sorted(options.atoms):
            n_edges = silicon(n_atoms, config.cutoff).edge_vector.shape[0]
            for allocator in options.allocator:
                what = {"precision": precision, "atoms": n_atoms, "edges": n_edges, "allocator": allocator}
                for row in one_size(options, scratch, what, per_edge):
                    per_edge[row["form"]] = row["bytes_per_edge"]  # from now on what was measured, not the bound
                    yield {**row, **made[row["form"]]}


def one_size(
    options: argparse.Namespace, scratch: Path, what: dict[str, Any], per_edge: dict[str, float]
) -> list[dict[str, Any]]:
    """Let the forms take turns on one structure.

    Args:
        options: of the command line.
        scratch: where the files of all forms are.
        what: precision, atoms, edges and allocator.
        per_edge: bytes that each form is expected to take; a GiB more is torch itself, the graph and the weights.
    """
    expected = {form: 1 + what["edges"] * bytes_per_edge / GIB for form, bytes_per_edge in per_edge.items()}
    for form in [form for form, gib in expected.items() if gib > options.memory]:
        print(f"{form} {what['precision']} {what['atoms']} atoms skipped: about {expected.pop(form):.0f} GiB", flush=True)
    together = sum(expected.values()) <= options.memory
    rows = []
    for group in [list(expected)] if together else [[form] for form in expected]:
        for row in turns(options, scratch, what, group):
            if "us_per_atom" in row:
                rows.append({**row, "turns": together})
            else:
                print(f"{row['form']} {what['precision']} {what['atoms']} atoms failed: {row['error']}", flush=True)
    eager = next((row["us_per_atom"] for row in rows if row["form"] == "eager"), math.nan)
    return [{**row, "x_eager": row["us_per_atom"] / eager} for row in rows]


def turns(options: argparse.Namespace, scratch: Path, what: dict[str, Any], forms: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each form, with ``us_per_atom`` or with ``error``."""
    children, rows = {}, {}
    for form in forms:  # started one by one, so that first evaluations do not disturb each other
        children[form] = Child(options, scratch, form, what["precision"], str(what["atoms"]), what["allocator"])
        rows[form] = {"form": form, **what, **children[form].answer()}
    times: dict[str, list[float]] = {form: [] for form in forms}
    for _ in range(options.repeats):
        for form in forms:
            if "error" not in rows[form]:
                answer = children[form].turn()
                rows[form] |= {"error": answer["error"]} if "error" in answer else {}
                times[form].append(answer.get("seconds", math.nan))
    for form in forms:
        children[form].close()
        if "error" not in rows[form]:
            rows[form]["us_per_atom"] = 1e6 * statistics.median(times[form]) / what["atoms"]
        yield rows[form]


class Child:
    """one_backend.py in a process of its own; it answers in lines of JSON."""

    def __init__(self, options: argparse.Namespace, scratch: Path, *words: str) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(options.threads),
            "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
            "XDG_CONFIG_HOME": str(scratch),
            "XDG_CACHE_HOME": str(scratch),
        }
        arguments = [sys.executable, str(Path(__file__).with_name("one_backend.py")), str(options.memory), str(scratch), *words]
        self._errors = (scratch / f"errors-{words[0]}.txt").open("w+")
        self._process = subprocess.Popen(
            arguments, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if line:
            return dict(json.loads(line))
        self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().strip().splitlines() or ["nothing"]
        return {"error": f"exit code {self._process.returncode}: {said[-1]}"}

    def turn(self) -> dict[str, Any]:
        """Seconds of one evaluation."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # the answer will say why
            print(file=self._process.stdin, flush=True)
        return self.answer()

    def close(self) -> None:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def last(self) -> dict[str, Any]:
        found = self.answer()
        self.close()
        return found


def model_config(options: argparse.Namespace) -> ModelConfig:
    if options.full or options.bare:
        config = ModelConfig(elements=("Si", "C", "Ge"))
        return dataclasses.replace(config, composition=None, structure=None) if options.bare else config
    return load_recipe(options.recipe).model


COLUMNS = {
    "precision": "{precision}", "allocator": "{allocator}", "atoms": "{atoms}", "form": "{form}",
    "µs/atom": "{us_per_atom:.1f}", "x eager": "{x_eager:.2f}", "kB/edge": "{kb_per_edge:.2f}",
    "peak GiB": "{peak_gib:.2f}", "start s": "{start_s:.1f}", "made s": "{made_s:.1f}", "payload MB": "{payload_mb:.1f}",
}  # fmt: skip


def show(rows: list[dict[str, Any]], title: str) -> None:
    table = Table(title=title)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("precision", "allocator", "form") else "right")
    for row in rows:
        shown = {**row, "kb_per_edge": row["bytes_per_edge"] / 1e3}
        shown["payload_mb"] = row["payload_bytes"] / 1e6
        table.add_row(*(text.format(**shown) for text in COLUMNS.values()))
    Console(width=128).print(table)


def picture(rows: list[dict[str, Any]], title: str, out: Path) -> None:
    """Time per atom against atoms, one panel for each precision; dashed with the allocator as it is."""
    precisions = list(dict.fromkeys(row["precision"] for row in rows))
    figure = Figure(figsize=(5.5 * max(len(precisions), 1), 4), dpi=110, layout="constrained")
    for k, precision in enumerate(precisions):
        axes = figure.add_subplot(1, len(precisions), k + 1)
        for form, allocator in dict.fromkeys((row["form"], row["allocator"]) for row in rows):
            wanted = (precision, form, allocator)
            chosen = [row for row in rows if (row["precision"], row["form"], row["allocator"]) == wanted]
            style: dict[str, Any] = {
                "marker": "o",
                "ms": 4,
                "color": f"C{FORMS.index(form)}",
                "ls": "-" if allocator == "tuned" else "--",
            }
            values = [row["us_per_atom"] for row in chosen]
            axes.plot([row["atoms"] for row in chosen], values, label=f"{form}, {allocator}", **style)
        axes.set(xscale="log", yscale="log", xlabel="silicon atoms", ylabel="µs per atom", title=f"{title}, {precision}")
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(out)


if __name__ == "__main__":
    main()
