"""A training step of the full-size Orb-v3 conservative model: ours, ours with streams, and orb-models' own.

    python benchmarks/training_step.py --python ENV/bin/python > benchmarks/results/training_step.txt

``--python`` names the interpreter that has orb-models; without it ours run alone. A step is energy, forces and stress of
silicon crystals of 64 rattled atoms, mean squared errors of all three, the derivative by all parameters, the norm of it and
AdamW; neighbour lists are there already, and everyone has the same. float32, one thread; one process each, which take turns.
Time is that of the processor. Memory is the peak over what the process held before its first step. 'kept' is ours with
an allocator that keeps freed memory, as `tfdeploy train` sets it on a CPU. ``--floor`` tells instead how much of our step are
matrix products at the speed of a single large one, which no compiler can make faster.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk

OURS = ("ours", "kept", "streams")
LABELS = {"energy": -5.0, "forces": 0.1, "stress": 0.01}
"""eV/atom, eV/Å, eV/Å³: what all labels are, since only the time of a step matters."""
CUTOFF, MOST_NEIGHBOURS = 6.0, 120


def crystals(n: int) -> list[Atoms]:
    found = []
    for k in range(n):
        atoms = bulk("Si", "diamond", a=5.43, cubic=True) * (2, 2, 2)
        atoms.positions += np.random.default_rng(k).normal(scale=0.05, size=atoms.positions.shape)
        found.append(atoms)
    return found


def loss_of(energy: torch.Tensor, forces: torch.Tensor, stress: torch.Tensor, n_atoms: int) -> torch.Tensor:
    parts = (energy / n_atoms - LABELS["energy"], forces - LABELS["forces"], stress - LABELS["stress"])
    return torch.stack([part.square().mean() for part in parts]).sum()


def stepper(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], float]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-5, fused=True)

    def step() -> float:
        optimiser.zero_grad()
        found = loss()
        found.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        return float(found.detach())

    return step


def orb(atoms: list[Atoms]) -> tuple[torch.nn.Module, Callable[[], torch.Tensor], int]:
    from orb_models.forcefield.atomic_system import SystemConfig, ase_atoms_to_atom_graphs
    from orb_models.forcefield.base import batch_graphs
    from orb_models.forcefield.pretrained import orb_v3_conservative_architecture

    system = SystemConfig(radius=CUTOFF, max_num_neighbors=MOST_NEIGHBOURS)
    model = orb_v3_conservative_architecture(device="cpu", system_config=system)
    model.heads.pop("confidence")  # ours has none
    model.extra_properties = []
    model.train()
    batch = batch_graphs([ase_atoms_to_atom_graphs(a, system, device=torch.device("cpu")) for a in atoms])

    def loss() -> torch.Tensor:
        found = model(batch)
        energy = model.heads["energy"].denormalize(found["energy"], batch)
        return loss_of(energy, found["grad_forces"], found["grad_stress"], len(atoms[0]))

    return model, loss, len(batch.senders)


def ours(atoms: list[Atoms], form: str) -> tuple[torch.nn.Module, Callable[[], torch.Tensor], int]:
    import dataclasses

    from triforces_deploy.allocator import keep_freed_memory
    from triforces_deploy.graph import collate
    from triforces_deploy.model import Model
    from triforces_deploy.neighbours import graph_from_atoms
    from triforces_deploy.training.objective import predict
    from triforces_deploy.training.recipe import load_recipe

    if form != "ours":
        keep_freed_memory()
    plan = load_recipe("orb", streams=form == "streams").model
    # The head that orb-models' conservative model has; a mean makes no difference to the time.
    model = Model(dataclasses.replace(plan, head_hidden=(256,), zbl=True))
    model.set_network_dtype(torch.float32)
    graph = collate([graph_from_atoms(a, CUTOFF) for a in atoms])

    def loss() -> torch.Tensor:
        return loss_of(*predict(model, graph, create_graph=True), len(atoms[0]))

    return model, loss, graph.edge_index.shape[1]


def serve(form: str, n_structures: int) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints
    torch.set_num_threads(1)
    torch.manual_seed(0)
    atoms = crystals(n_structures)
    model, loss, edges = orb(atoms) if form == "orb-models" else ours(atoms, form)
    step = stepper(model, loss)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    parameters = sum(p.numel() for p in model.parameters())
    for _ in sys.stdin:
        start, clock = time.process_time(), time.perf_counter()
        found = step()
        row = {"seconds": time.process_time() - start, "wall": time.perf_counter() - clock, "loss": found, "edges": edges}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        print(json.dumps({**row, "peak_bytes": peak, "parameters": parameters}), file=answers, flush=True)


def floor(n_structures: int) -> None:
    from torch.profiler import ProfilerActivity, profile

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, loss, edges = ours(crystals(n_structures), "kept")
    step = stepper(model, loss)
    step()
    start = time.process_time()
    step()
    seconds = time.process_time() - start
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True, with_flops=True) as found:
        step()
    events = found.key_averages()
    products = [event for event in events if event.key in ("aten::mm", "aten::addmm", "aten::bmm")]
    share = sum(e.self_cpu_time_total for e in products) / sum(e.self_cpu_time_total for e in events)
    work = sum(e.flops for e in products)
    one, other = torch.randn(edges, 1024), torch.randn(1024, 1024)
    one @ other
    start = time.process_time()
    for _ in range(5):
        one @ other
    peak = 5 * 2.0 * one.numel() * 1024 / (time.process_time() - start)
    print(
        f"{n_structures} × 64 Si: {seconds:.2f} s a step; {share:.0%} of the profiled time are matrix products, "
        f"{work / 1e9:.0f} GFLOP; one product of this kind runs at {peak / 1e9:.0f} GFLOP/s, "
        f"so that they need {work / peak:.2f} s, {work / peak / seconds:.0%} of the step"
    )


class Runner:
    """A process that makes a step for each line it is given."""

    def __init__(self, form: str, python: str, n_structures: int) -> None:
        command = [python, "-W", "ignore", __file__, "--serve", form, "--structures", str(n_structures)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.form, self.rows = form, list[dict[str, Any]]()
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def step(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.form} ended with code {self.process.wait()}")
        self.rows.append(json.loads(line))

    def end(self) -> None:
        self.process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="", help="interpreter with orb-models")
    parser.add_argument("--structures", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--floor", action="store_true")
    parser.add_argument("--serve", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve, given.structures)
        return
    if given.floor:
        floor(given.structures)
        return
    runners = [Runner(form, sys.executable, given.structures) for form in OURS]
    if given.python:
        runners.append(Runner("orb-models", given.python, given.structures))
    for _ in range(given.repeats + 1):  # the first fills caches and the optimiser's state
        for runner in runners:
            runner.step()
    last = statistics.median(row["seconds"] for row in runners[-1].rows[1:])
    print(f"{given.structures} × 64 Si, torch {torch.__version__}, {given.repeats} steps each, processor time of one thread")
    for runner in runners:
        seconds = statistics.median(row["seconds"] for row in runner.rows[1:])
        row = runner.rows[-1]
        print(
            f"{runner.form:10} {row['parameters'] / 1e6:5.1f} M parameters, {row['edges']} edges: {seconds:6.2f} s a step, "
            f"{seconds / last:4.2f} of {runners[-1].form}; {row['peak_bytes'] / 2**30:5.2f} GiB"
        )
        runner.end()


if __name__ == "__main__":
    main()
