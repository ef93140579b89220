"""Are the ONNX forms the same to the last bit on any number of threads, and what do they cost? At full size, random weights.

    python benchmarks/onnx_threads.py [ATOMS ...] [--threads 1 2 4] [--repeats 20] [--precision float32]

One line for the lowering, then one for each form, size (rattled Si-C-Ge, rounded to whole diamond cells) and number of
threads: in how many of the repeats a bit differed from the first run on one thread, and the median time of an evaluation.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from numpy.typing import NDArray

from triforces_deploy.config import ModelConfig
from triforces_deploy.export.backends.base import Captured
from triforces_deploy.export.backends.table import compile_payload
from triforces_deploy.export.capture import capture
from triforces_deploy.model import Model
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.onnx_positions import PositionsModel
from triforces_deploy.payloads.base import Payload
from triforces_deploy.payloads.onnx import BACKEND
from triforces_deploy.precision import PRECISIONS

ELEMENTS = ("Si", "C", "Ge")
Evaluate = Callable[[], Sequence[NDArray[Any]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("atoms", type=int, nargs="*", default=[64, 216])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--precision", choices=["float64", "float32"], default="float32")
    options = parser.parse_args()
    captured = full_size(options.precision)
    forms = {name: timed(name, captured) for name in ("onnx", "onnx-positions")}
    for atoms in (crystal(n) for n in options.atoms):
        for name, payload in forms.items():
            evaluate, first = evaluator(name, payload, captured, atoms), None
            for threads in options.threads:
                torch.set_num_threads(threads)
                times, differing = [], 0
                for _ in range(options.repeats):
                    start = time.perf_counter()
                    found = evaluate()
                    times.append(time.perf_counter() - start)
                    first = found if first is None else first
                    differing += not all(np.array_equal(x, y, equal_nan=True) for x, y in zip(found, first, strict=True))
                row = {"form": name, "atoms": len(atoms), "threads": threads, "repeats": options.repeats}
                print(json.dumps({**row, "differing": differing, "ms": round(1e3 * statistics.median(times), 1)}), flush=True)


def full_size(precision: str) -> Captured:
    """The captured graph of a model with every default."""
    torch.manual_seed(0)
    model = Model(ModelConfig(elements=ELEMENTS))
    model.set_network_dtype(PRECISIONS[precision].dtype)
    return capture(model.eval().requires_grad_(False), dataclasses.replace(model.facts(), precision=precision))


def timed(name: str, captured: Captured) -> Payload:
    start, busy = time.perf_counter(), time.process_time()
    payload = compile_payload(name, captured)
    seconds = {"seconds": round(time.perf_counter() - start, 1), "cpu_seconds": round(time.process_time() - busy, 1)}
    print(json.dumps({"lowering": name, **seconds, "MB": round(len(payload.content) / 1e6, 1)}), flush=True)
    return payload


def crystal(n_atoms: int) -> Atoms:
    atoms = bulk("Si", "diamond", 5.43, cubic=True).repeat(max(1, round((n_atoms / 8) ** (1 / 3))))
    atoms.symbols[::3], atoms.symbols[1::7] = "Ge", "C"
    atoms.rattle(0.1, seed=0)
    return atoms


def evaluator(name: str, payload: Payload, captured: Captured, atoms: Atoms) -> Evaluate:
    """Everything included that one evaluation needs, but for the neighbour list of the form that takes a graph."""
    if name == "onnx-positions":
        model = PositionsModel(payload.content, payload.info, captured.facts)
        return lambda: [np.asarray(values) for values in model.evaluate(atoms)]
    run = BACKEND.open(payload.info, payload.content, torch.device("cpu"))
    graph = graph_from_atoms(atoms, captured.facts.cutoff)
    return lambda: [t.numpy() for t in run(graph)]


if __name__ == "__main__":
    main()
