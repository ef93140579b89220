"""How fast batches reach a training step: from packed structures, and by building graphs in the collate function.

Structures are defect-like cells, rattled; labels are random, since nobody looks at them. Each line of the result is the
median over batches of the CPU seconds for one batch, made in this process alone on one thread. What workers bring is in
loader.py.

    python benchmarks/data_pipeline.py --out benchmarks/results/data-pipeline.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from triforces_deploy.model import Model
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.training.batches import Stream
from triforces_deploy.training.converting import Limits, convert
from triforces_deploy.training.data import Part
from triforces_deploy.training.objective import losses, predict
from triforces_deploy.training.packed import index_file, open_packed
from triforces_deploy.training.packing import Packer
from triforces_deploy.training.reading import labels_of
from triforces_deploy.training.recipe import load_recipe
from triforces_deploy.training.sources.base import Record
from triforces_deploy.training.structures import Sample, join


def crystals(n: int, rng: np.random.Generator) -> list[Atoms]:
    """Silicon cells of 64 atoms, one missing."""
    perfect = bulk("Si", "diamond", 5.43, cubic=True).repeat(2)
    out = []
    for _ in range(n):
        atoms = perfect.copy()
        del atoms[int(rng.integers(64))]
        out.append(atoms)
    return out


def molecules(n: int, _: np.random.Generator) -> list[Atoms]:
    return [molecule(name) for name in ("C6H6", "CH3CH2OH", "C5H8", "CH3CONH2", "isobutane") for _ in range(n // 5)]


KINDS: dict[str, tuple[Callable[[int, np.random.Generator], list[Atoms]], int]] = {
    "63-atom crystals": (crystals, 32),
    "molecules of 9 to 14 atoms": (molecules, 128),
}
"""What, and how many make a batch."""


def labelled(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
    atoms.calc = SinglePointCalculator(atoms, energy=float(rng.normal()), forces=rng.normal(0, 1, atoms.positions.shape))
    return atoms


def collated(structures: list[Atoms], cutoff: float) -> Sample:
    """A batch as a collate function makes it that is handed structures."""
    nan = torch.full((1, 3, 3), torch.nan, dtype=torch.float64)
    return join(
        [
            Sample(
                graph_from_atoms(a, cutoff),
                torch.tensor([a.calc.results["energy"]], dtype=torch.float64),
                torch.from_numpy(a.calc.results["forces"]),
                nan,
            )
            for a in structures
        ]
    )


def median(make: Callable[[int], Any], batches: int) -> float:
    make(0)
    times = []
    for k in range(batches):
        start = time.process_time()
        make(k)
        times.append(time.process_time() - start)
    return statistics.median(times)


def full_size_step(sample: Sample) -> float:
    """CPU seconds of losses and gradients of the full-size model for a batch."""
    plan = load_recipe("paper")
    torch.manual_seed(0)
    model = Model(plan.model)
    times = []
    for _ in range(2):  # the first also sets the network up
        start = time.process_time()
        losses(predict(model, sample.graph, create_graph=True), sample, plan.loss).total.backward()
        times.append(time.process_time() - start)
    return times[-1]


def measure(kind: str, structures: int, batches: int, cutoff: float, folder: Path) -> dict[str, Any]:
    make, size = KINDS[kind]
    rng = np.random.default_rng(0)
    atoms = [labelled(a, rng) for a in make(structures, rng)]
    path = folder / f"{len(atoms)}-{size}.extxyz"
    write(path, atoms, format="extxyz")
    start = time.perf_counter()
    out = convert([path], path.with_suffix(""), cutoff, Limits()).out
    converting = time.perf_counter() - start
    packed = open_packed(index_file(out))
    part = Part((packed,), np.stack([np.zeros(len(packed), np.int64), np.arange(len(packed))], axis=1))
    still = Stream(part, size, "structures", 0, rotate=False)
    turning = Stream(part, size, "structures", 0, rotate=True)
    order = still.order

    def chosen(step: int) -> list[Atoms]:
        return [atoms[k % len(atoms)] for k in order.batch(step)]

    build = median(lambda k: collated(chosen(k), cutoff), batches)
    pack = median(lambda k: next(still.batches(range(k, k + 1))), batches)
    turn = median(lambda k: next(turning.batches(range(k, k + 1))), batches)
    sample = next(still.batches(range(1)))
    return {
        "structures": kind, "in the set": len(packed), "in a batch": size, "atoms": len(sample.graph.numbers),
        "edges": sample.graph.edge_index.shape[1], "cutoff": cutoff,
        "build graphs in collate, s": build, "packed, s": pack, "packed and turned, s": turn, "ratio": build / pack,
        "ratio, turned": build / turn, "convert, structures/s": len(packed) / converting,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--structures", type=int, default=500)
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--cutoff", type=float, default=6.0)
    parser.add_argument("--full-size", action="store_true", help="also a training step of the full-size model, on one crystal")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    machine = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            found = measure(kind, arguments.structures, arguments.batches, arguments.cutoff, Path(folder))
            report(found | machine, arguments.out)
    if arguments.full_size:
        crystal = labelled(crystals(1, np.random.default_rng(0))[0], np.random.default_rng(0))
        packer = Packer(6.0)
        packer.add(Record(crystal), labels_of(crystal, "it"), Path("made here"), 0)
        packed = packer.packed()
        sample = packed.batch([0])
        data, step = median(lambda _: packed.batch([0]), 20), full_size_step(sample)
        found = {"structures": "one 63-atom crystal", "packed, s": data, "training step of the full-size model, s": step}
        report(found | {"share of the step": data / step} | machine, arguments.out)


def report(found: dict[str, Any], out: Path | None) -> None:
    line = json.dumps(found)
    print(line, flush=True)
    if out:
        with out.open("a") as stream:
            stream.write(line + "\n")


if __name__ == "__main__":
    main()
