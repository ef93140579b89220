"""The processes that benchmarks/backends.py starts: make one form, or run one on one structure when told to.

    python benchmarks/one_backend.py GIB FOLDER FORM PRECISION                    # from model.ckpt in FOLDER
    python benchmarks/one_backend.py GIB FOLDER FORM PRECISION ATOMS ALLOCATOR    # an evaluation for each line on stdin

Answers are lines of JSON. GIB limits the process, so that a wrong estimate ends it and not the machine.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ase.build import bulk

from triforces_deploy.allocator import keep_freed_memory
from triforces_deploy.artifact import potential, read_artifact, rebuild
from triforces_deploy.errors import UserError
from triforces_deploy.export.backends.table import MODULES
from triforces_deploy.export.capture import capture
from triforces_deploy.export.exporting import ExportOptions, export
from triforces_deploy.graph import Graph
from triforces_deploy.memory import VARIABLE
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.payloads.base import flat_inputs

GIB = 2**30
WITHOUT_PAYLOAD = ("eager", "blocks", "compile")
LEAN = "-lean"
"""Ends the names of forms that are exported with --lean."""
Evaluate = Callable[[Graph], Any]


def main() -> None:
    limit, folder, form, precision, *rest = sys.argv[1:]
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    allowed = int((float(limit) + 4) * GIB)  # what torch maps before it does anything counts too
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints

    def answer(content: dict[str, Any]) -> None:
        print(json.dumps(content), file=answers, flush=True)

    path = Path(folder) / f"{form}-{precision}.pt"
    if not rest:
        try:
            answer(make(Path(folder) / "model.ckpt", path, form, precision))
        except UserError as error:
            answer({"error": str(error)})
        return
    n_atoms, allocator = rest
    if allocator == "tuned":
        keep_freed_memory()
    with torch.no_grad():
        serve(path, form, int(n_atoms), answer)


def make(source: Path, path: Path, form: str, precision: str) -> dict[str, Any]:
    """Export one form; for compile, compile it with an empty cache."""
    backend = form.removesuffix(LEAN)
    if backend not in (*WITHOUT_PAYLOAD, *MODULES):
        raise UserError("this version does not make it")
    start = time.perf_counter()
    backends = () if form in WITHOUT_PAYLOAD else (backend,)
    artifact = export(source, path, ExportOptions(precision=precision, backends=backends, lean=backend != form))
    if backends and backend not in artifact.payloads:
        raise UserError(artifact.metadata.facts.policies[-1])
    if form == "compile":
        start = time.perf_counter()
        with torch.no_grad():
            open_form(path, form)(silicon(64, artifact.metadata.facts.cutoff))
    details = next((info.details for info in artifact.metadata.payloads), {})
    return {
        "made_s": time.perf_counter() - start,
        "payload_bytes": sum(map(len, artifact.payloads.values())),
        "bound_bytes_per_edge": float(details.get("bytes_per_edge", 0.0)),
    }


def open_form(path: Path, form: str) -> Evaluate:
    artifact = read_artifact(path)
    os.environ[VARIABLE] = "0" if form == "blocks" else "1000GiB"  # no other form may change over to blocks
    form = "eager" if form == "blocks" else form
    if form != "compile":
        return potential(artifact, path.name, form.removesuffix(LEAN), trusted=True).evaluate
    model = rebuild(artifact).requires_grad_(False)
    compiled = torch.compile(capture(model, artifact.metadata.facts).module, dynamic=True)
    return lambda graph: compiled(*flat_inputs(graph))


def serve(path: Path, form: str, n_atoms: int, answer: Callable[[dict[str, Any]], None]) -> None:
    """Start, warm up on 8 atoms (an arena keeps what they took), measure the memory of one evaluation, time one per line."""
    cutoff = read_artifact(path).metadata.facts.cutoff
    small, graph = silicon(8, cutoff), silicon(n_atoms, cutoff)
    start = time.perf_counter()
    evaluate = open_form(path, form)
    evaluate(small)
    start_s = time.perf_counter() - start
    for _ in range(2):  # TorchScript rewrites itself once more
        evaluate(small)
    peak = peak_of(lambda: evaluate(graph))
    answer({"start_s": start_s, "peak_gib": peak / GIB, "bytes_per_edge": peak / graph.edge_vector.shape[0]})
    for _ in sys.stdin:
        start = time.perf_counter()
        evaluate(graph)
        answer({"seconds": time.perf_counter() - start})


def peak_of(work: Callable[[], Any]) -> int:
    """Bytes that the process held at most while it worked, over what it held before."""
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    work()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def silicon(n_atoms: int, cutoff: float) -> Graph:
    """The graph of a rattled diamond crystal of so many atoms, a multiple of 8, as near to a cube as possible."""
    cells = max(1, n_atoms // 8)
    shapes = [
        (a, b, cells // (a * b)) for a in range(1, cells + 1) if cells % a == 0 for b in range(1, a + 1) if cells % (a * b) == 0
    ]
    atoms = bulk("Si", "diamond", 5.43, cubic=True).repeat(min(shapes, key=lambda shape: max(shape) - min(shape)))
    atoms.rattle(0.05, seed=0)
    return graph_from_atoms(atoms, cutoff)


if __name__ == "__main__":
    main()
