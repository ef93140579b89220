"""Memory and time of one energy-and-forces of the full-size model on large silicon cells, whole and in blocks.

    python benchmarks/large_cells.py --atoms 1000 2000 --threads 2            # whole evaluation beside blocks
    python benchmarks/large_cells.py --atoms 2000 100000 --forms scratch --folder /path/on/a/disk

Sizes of the paper: 256 wide streams around an Orb-v3 trunk of five layers, random weights; 'bare' is the trunk alone. Every
figure is from a process of its own. Memory is the largest resident size less that of the process with the model loaded; in
the form 'scratch' it includes what is resident of the file. Times are wall-clock and processor seconds of the last of
``--repeats`` evaluations.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

FORMS = ("whole", "blocks", "scratch")


def measure(form: str, n_atoms: int, dtype: str, threads: int, repeats: int, bare: bool) -> dict[str, object]:
    import torch

    from triforces_deploy.allocator import keep_freed_memory
    from triforces_deploy.config import ModelConfig
    from triforces_deploy.model import Model
    from triforces_deploy.neighbours import graph_from_atoms
    from triforces_deploy.nn import blocks

    keep_freed_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    streams = {"composition": None, "structure": None} if bare else {}
    model = Model(ModelConfig(elements=("Si", "C", "Ge"), **streams))
    model.set_network_dtype(getattr(torch, dtype))
    model.eval().requires_grad_(False)
    before = resident("VmRSS")
    graph = graph_from_atoms(silicon(n_atoms), model.config.cutoff)
    edges = graph.edge_vector.shape[0]
    for _ in range(repeats):
        wall, processor = time.perf_counter(), time.process_time()
        if form == "whole":
            energies, _ = model.run(graph)
        else:
            with blocks.using(0):
                energies, _ = model.run(graph)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    beyond = resident("VmHWM") - before
    atoms = graph.numbers.shape[0]
    return {
        "form": form,
        "bare": bare,
        "dtype": dtype,
        "threads": threads,
        "atoms": atoms,
        "edges": edges,
        "ms_per_atom": round(1e3 * wall / atoms, 2),
        "processor_ms_per_atom": round(1e3 * processor / atoms, 2),
        "GiB_beyond_model": round(beyond / 2**30, 3),
        "kB_per_edge": round(beyond / 1e3 / edges, 2),
        "energy_per_atom": float(energies.sum()) / atoms,
    }


def silicon(n_atoms: int):
    """A rattled diamond cell, as near to a cube as whole unit cells allow."""
    from ase.build import bulk

    cells = n_atoms / 8
    a = max(1, round(cells ** (1 / 3)))
    c = max(1, round(cells / a**2))
    atoms = bulk("Si", "diamond", 5.43, cubic=True).repeat((a, a, c))
    atoms.rattle(0.05, seed=0)
    return atoms


def resident(field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return 1024 * int(match[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--atoms", type=int, nargs="+", default=[216, 1000])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=["whole", "blocks"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--bare", action="store_true", help="the backbone without composition and structure stream")
    parser.add_argument("--folder", type=Path, default=Path(), help="where the form 'scratch' keeps its file")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        arguments = (options.forms[0], options.atoms[0], options.dtype, options.threads, options.repeats, options.bare)
        print(json.dumps(measure(*arguments)))
        return
    for n_atoms in options.atoms:
        for form in options.forms:
            environment = {**os.environ}
            if form == "scratch":
                environment["TFDEPLOY_SCRATCH"] = str(options.folder.resolve())
            command = [sys.executable, __file__, "--here", "--atoms", str(n_atoms), "--forms", form]
            command += ["--dtype", options.dtype, "--threads", str(options.threads), "--repeats", str(options.repeats)]
            subprocess.run(command + ["--bare"] * options.bare, env=environment, check=True)


if __name__ == "__main__":
    main()
