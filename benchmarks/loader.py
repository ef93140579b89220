"""What a training process holds of its structures, how fast workers deliver batches, and whether a step waits for them.

    python benchmarks/loader.py memory --out benchmarks/results/loader.jsonl
    python benchmarks/loader.py rate --out benchmarks/results/loader.jsonl
    python benchmarks/loader.py wait --out benchmarks/results/loader.jsonl

'memory': fresh processes set pretraining up on 10³ … 10⁵ packed crystals of 8 atoms and make batches of views; MiB of the
process itself, and of pages of files, which any other program may take back. The same beside it for structures as ase.Atoms.
'rate': batches of DataLoader without a model, by workers: packed and turned, and views; CPU seconds beside it, which other
load on the machine does not touch. 'wait': steps of the full-size model, with --threads; the time between two steps over
that of a step.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from triforces_deploy.training.data import DataConfig
from triforces_deploy.training.fit import Fit, Watcher
from triforces_deploy.training.packed import index_file, open_packed
from triforces_deploy.training.packing import Packer
from triforces_deploy.training.pretraining import Pretraining
from triforces_deploy.training.ranks import new_fabric
from triforces_deploy.training.reading import labels_of
from triforces_deploy.training.recipe import Recipe, load_recipe
from triforces_deploy.training.sources.base import Record
from triforces_deploy.training.supervised import Supervised
from triforces_deploy.training.task import Task

WORKERS = (0, 1, 2)


def packed(folder: Path, n: int, repeat: int, cutoff: float) -> Path:
    """A folder of rattled silicon with labels that nobody looks at, ten structures to a trajectory."""
    rng, perfect = np.random.default_rng(0), bulk("Si", "diamond", 5.43, cubic=True).repeat(repeat)
    if repeat > 1:
        del perfect[0]
    folder.mkdir()
    with Packer(cutoff, folder) as packer:
        for k in range(n):
            atoms = perfect.copy()
            atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
            forces = rng.normal(0, 1, atoms.positions.shape)
            atoms.calc = SinglePointCalculator(atoms, energy=float(rng.normal()), forces=forces)
            packer.add(Record(atoms, f"run {k // 10}"), labels_of(atoms, "it"), Path("made here"), k)
        packer.write_index({})
    return folder


def plan_of(recipe: str, files: Path, held_out: Path, **trainer: Any) -> Recipe:
    plan = load_recipe(recipe)
    data = DataConfig(files=(str(files),), validation_files=(str(held_out),), test=0.0)
    how = {"device": "cpu", "precision": "float32", "batch_by": "structures", **trainer}
    model = dataclasses.replace(plan.model, elements=("Si",))
    return dataclasses.replace(plan, model=model, data=data, trainer=dataclasses.replace(plan.trainer, **how))


# ---- memory ----


def resident() -> dict[str, float]:
    """MiB of this process: its own, and of mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith("Rss")}
    return {"own, MiB": found["RssAnon"], "of files, MiB": found["RssFile"]}


def hold(folder: str, held_out: str, way: str) -> None:
    """In a process of its own: prints what its structures take."""
    before = resident()
    kept: Any
    if way == "ase.Atoms":
        source = open_packed(index_file(Path(folder)))
        kept = [source.atoms(k) for k in range(len(source))]
    else:
        kept = Pretraining(plan_of("pretrain", Path(folder), Path(held_out), batch_size=16))
        for _ in kept.batches(range(40)):
            pass
    after = resident()
    print(json.dumps({name: after[name] - before[name] for name in before}))


def memory(report: Callable[[dict[str, Any]], None], work: Path) -> None:
    held_out = packed(work / "held-out", 10, 1, 1.0)
    rewrite_trajectories(held_out)
    thousand = packed(work / "thousand", 1000, 1, 1.0)
    for n in (1_000, 10_000, 100_000):
        folder = repeated(thousand, work / f"{n}", n // 1000)
        for way in ("mapped", "ase.Atoms"):
            command = [sys.executable, __file__, "hold", "--folder", folder, "--held-out", held_out, "--way", way]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            report({"what": "memory", "structures": n, "atoms": 8 * n, "way": way, **json.loads(said)})


def repeated(folder: Path, out: Path, times: int) -> Path:
    """The same structures many times, each time with trajectories of their own."""
    out.mkdir()
    source = open_packed(index_file(folder))
    content = json.loads(index_file(folder).read_text())
    names = content["trajectories"]
    for name, array in source.arrays.items():
        tiled = np.concatenate([array] * times)
        if name == "trajectory":
            tiled += np.repeat(np.arange(times, dtype=tiled.dtype), len(array)) * len(names)
        tiled.tofile(out / f"{name}.bin")
    content["trajectories"] = [f"{k}, {name}" for k in range(times) for name in names]
    content["counts"] = {what: times * count for what, count in content["counts"].items()}
    (out / "index.json").write_text(json.dumps(content))
    return out


def rewrite_trajectories(folder: Path) -> None:
    """Give what is held out trajectories of its own."""
    index = index_file(folder)
    content = json.loads(index.read_text())
    content["trajectories"] = [f"held out, {name}" for name in content["trajectories"]]
    index.write_text(json.dumps(content))


# ---- rate ----


class Timed(Fit):
    """Notes when steps begin and end; without a model where ``idle``."""

    idle: bool
    times: list[float]

    def training_step(self, pieces: list[Any]) -> None:
        self.times.append(time.perf_counter())
        if self.idle:
            self.step += 1
        else:
            super().training_step(pieces)
        self.times.append(time.perf_counter())

    def timed(self) -> list[float]:
        """Moments: the start, then the beginning and the end of each step."""
        self.times = [time.perf_counter()]
        self.run()
        return self.times

    def _validate(self) -> None:
        """Not what is measured."""


def fit_of(task: Task[Any], idle: bool) -> Timed:
    fit = Timed(new_fabric(task.plan.trainer), task, Watcher(), lambda: 0, lambda: False)
    fit.idle = idle
    return fit


def tasks(work: Path, size: int, steps: int) -> Iterator[tuple[str, Callable[[int], Task[Any]]]]:
    """Fits to labels, and pretraining, of 63-atom crystals by number of workers."""
    labelled, held_out = work / "crystals", work / "held-out"
    if not labelled.exists():
        packed(labelled, 60, 2, 6.0)
        rewrite_trajectories(packed(held_out, 10, 2, 6.0))
    how = {"batch_size": size, "steps": steps, "validate_every": steps}
    yield "labels, turned", lambda w: Supervised(plan_of("paper", labelled, held_out, workers=w, **how))
    yield "views", lambda w: Pretraining(plan_of("pretrain", labelled, held_out, workers=w, **how))


def rate(report: Callable[[dict[str, Any]], None], work: Path) -> None:
    torch.set_num_threads(1)
    size, steps = 16, 60
    for name, make in tasks(work, size, steps):
        for _ in range(2):  # interleaved: other load on the machine then meets all alike
            for workers in WORKERS:
                how_many = steps if name == "views" else 8 * steps
                fit = fit_of(with_steps(make(workers), how_many), idle=True)
                before, children = time.process_time(), of_workers()
                times = fit.timed()
                begins, n = times[1::2], size * how_many
                report(
                    {
                        "what": "rate", "batches": name, "in a batch": size, "atoms": 63, "workers": workers,
                        "structures/s": size * (len(begins) - 11) / (begins[-1] - begins[10]),
                        "first batch, s": begins[0] - times[0],
                        "CPU ms a structure, this process": 1000 * (time.process_time() - before) / n,
                        "CPU ms a structure, workers": 1000 * (of_workers() - children) / n,
                    }
                )  # fmt: skip


def of_workers() -> float:
    """CPU seconds of the processes that this one has waited for."""
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found.ru_utime + found.ru_stime


def with_steps(task: Task[Any], steps: int) -> Task[Any]:
    trainer = dataclasses.replace(task.plan.trainer, steps=steps, validate_every=steps)
    task.plan = dataclasses.replace(task.plan, trainer=trainer)
    return task


# ---- wait ----


def wait(report: Callable[[dict[str, Any]], None], work: Path, only: str = "") -> None:
    steps = 4
    for name, make in tasks(work, 1, steps):
        for workers in WORKERS if only in ("", name) else ():
            times = fit_of(make(workers), idle=False).timed()
            works = [end - begin for begin, end in zip(times[1::2], times[2::2], strict=True)]
            waits = [begin - end for end, begin in zip(times[0::2], times[1::2], strict=False)]
            step = statistics.median(works[1:])
            report(
                {
                    "what": "wait", "batches": name, "in a batch": 1, "atoms": 63, "workers": workers,
                    "threads": torch.get_num_threads(),
                    "step, s": step,
                    "wait, s": statistics.median(waits[1:]), "share of the step": statistics.median(waits[1:]) / step,
                    "longest wait, s": max(waits[1:]), "before the first step, s": waits[0],
                }
            )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("section", choices=["memory", "rate", "wait", "hold"])
    parser.add_argument("--batches", default="", help="of 'wait': only 'labels, turned' or 'views'")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of 'wait'")
    parser.add_argument("--out", type=Path)
    for name in ("--folder", "--held-out", "--way"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.section == "hold":
        hold(arguments.folder, arguments.held_out, arguments.way)
        return

    def report(found: dict[str, Any]) -> None:
        line = json.dumps({**found, "machine": f"{platform.machine()}, {os.cpu_count()} cores", "torch": torch.__version__})
        print(line, flush=True)
        if arguments.out:
            with arguments.out.open("a") as stream:
                stream.write(line + "\n")

    with tempfile.TemporaryDirectory() as folder:
        if arguments.section == "wait":
            torch.set_num_threads(arguments.threads)
            wait(report, Path(folder), arguments.batches)
        else:
            {"memory": memory, "rate": rate}[arguments.section](report, Path(folder))


if __name__ == "__main__":
    main()
