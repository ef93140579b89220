"""The processes that benchmarks/gpu.py starts: one job each, told as JSON, answered as the last line of JSON."""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from one_backend import resident, silicon

from triforces_deploy import checkpoint, derivatives
from triforces_deploy.allocator import keep_freed_memory
from triforces_deploy.artifact import load, read_artifact
from triforces_deploy.config import BackboneConfig, CompositionConfig, ModelConfig, StructureConfig
from triforces_deploy.errors import UserError
from triforces_deploy.export.exporting import ExportOptions, export
from triforces_deploy.graph import Graph
from triforces_deploy.lammps_plugin.placement import DEVICE, ROUTE
from triforces_deploy.lammps_plugin.recording import CudaGraphs
from triforces_deploy.model import Model
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.potential import Potential
from triforces_deploy.training.recipe import load_recipe

LIST_EVERY = 10
TIMESTEP = 1e-6
"""ps. Random weights throw atoms about; what is timed is a step, whatever its length."""
TINY = ModelConfig(
    elements=("Si", "Ge"),
    cutoff=4.0,
    backbone=BackboneConfig("orb_v3", {"latent": 16, "n_layers": 2, "mlp_hidden": 24, "n_bessel": 4, "l_max": 1}),
    composition=CompositionConfig(width=8, heads=2, layers=1, hidden=16),
    structure=StructureConfig(width=8, hidden=16, n_radial=4, n_channels=2, l_max=2),
)


MACE = ModelConfig(("Si", "C", "Ge"), 6.0, BackboneConfig("mace", {}), None, None, (16,), head_skip=True)
"""Of the published medium size. TFDEPLOY_KERNELS says whose kernels its eager form takes."""


def main() -> None:
    job = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints
    keep_freed_memory()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    print(json.dumps(JOBS[job.pop("job")](**job)), file=answers, flush=True)
    answers.close()
    os._exit(0)  # LAMMPS, torch and CUDA end in no particular order


def config(model: str) -> ModelConfig:
    if model in ("tiny", "mace"):
        return TINY if model == "tiny" else MACE
    return load_recipe("demo").model if model == "demo" else ModelConfig(elements=("Si", "C", "Ge"))


def make(model: str, file: str, precision: str, form: str, device: str) -> dict[str, Any]:
    """Random weights, one compiled form."""
    torch.manual_seed(0)
    source = Path(file).with_suffix(".ckpt")
    checkpoint.save(source, Model(config(model)).eval(), {"data": "random weights"})
    start = time.perf_counter()
    forms = () if form == "eager" else (form,)
    artifact = export(source, Path(file), ExportOptions(precision=precision, backends=forms, device=device))
    if forms and form not in artifact.payloads:
        return {"error": artifact.metadata.facts.policies[-1]}
    return {"made_s": time.perf_counter() - start}


def step(file: str, form: str, route: str, atoms: int, device: str, steps: int) -> dict[str, Any]:
    """Steps of LAMMPS by one route, and the model alone on the same number of atoms and edges."""
    os.environ[ROUTE], os.environ[DEVICE] = route, device
    place = torch.device(device)
    potential = load(file, form, device=place)
    graph = Graph(*(t.to(place) for t in silicon(atoms, potential.facts.cutoff)))
    alone, peak = model_alone(potential, graph, route == "graphs", steps)
    kernels = potential.kernels
    del potential
    measured = lammps_steps(file, form, atoms, steps)
    pair, n = measured["pair_s"], graph.numbers.shape[0]
    return {
        **measured,
        "atoms": n,
        "edges": graph.edge_vector.shape[0],
        "model_s": alone,
        "glue": 1.0 - alone / pair,
        "ns_per_day": 86400e-6 / measured["step_s"],
        "bytes_per_atom": peak / n,
        "kernels": kernels,
    }


def model_alone(potential: Potential, graph: Graph, recorded: bool, steps: int) -> tuple[float, int]:
    """Median seconds of an evaluation, and the bytes that it takes at most beyond graph and weights."""
    cuda = graph.numbers.is_cuda

    def evaluate() -> torch.Tensor:
        return potential.evaluate_unchecked(graph).edge_forces

    with torch.no_grad():
        evaluate()
        peak = peak_of(evaluate, cuda)
        run: Callable[[], Any] = CudaGraphs()(evaluate) if recorded and cuda else evaluate
        return timed(run, steps, cuda), peak


def timed(run: Callable[[], Any], steps: int, cuda: bool) -> float:
    times = []
    for _ in range(max(steps, 5)):
        start = time.perf_counter()
        run()
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_of(run: Callable[[], Any], cuda: bool) -> int:
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    run()
    return resident("VmHWM") - before


def lammps_steps(file: str, form: str, atoms: int, steps: int) -> dict[str, float]:
    """Seconds per step: all of it, and the pair style's part."""
    import lammps

    from triforces_deploy.lammps_plugin import placement

    placement.artifact.load = lambda path, _backend, _trust, device: load(path, form, device=device)  # type: ignore[assignment]
    elements = read_artifact(Path(file)).metadata.facts.elements
    a, b, c = _cells(atoms)
    with tempfile.TemporaryDirectory() as name:
        log = Path(name) / "log"
        host = lammps.lammps(cmdargs=["-log", str(log), "-screen", "none"])
        host.commands_string(
            f"units metal\nlattice diamond 5.43\nregion all block 0 {a} 0 {b} 0 {c}\ncreate_box 1 all\ncreate_atoms 1 box\n"
            f"mass 1 28.085\nneighbor 1.0 bin\nneigh_modify every {LIST_EVERY} delay 0 check no\n"
            f"displace_atoms all random 0.05 0.05 0.05 1\nfix 1 all nve\ntimestep {TIMESTEP}\nthermo 1000000\n"
            f"pair_style triforces {file}\npair_coeff * * {elements[0]}\nrun {LIST_EVERY}"
        )
        for _ in range(3):
            host.command(f"run {steps}")
        text = log.read_text()
        host.close()
    return {"step_s": _per_step(text, "Loop time of", 3) / steps, "pair_s": _per_step(text, "Pair ", 2) / steps}


def _per_step(text: str, start: str, word: int) -> float:
    found = [line.replace("|", " | ").split() for line in text.splitlines() if line.startswith(start)]
    return statistics.median(float(words[word]) for words in found[-3:])


def _cells(atoms: int) -> tuple[int, int, int]:
    """The cell of :func:`one_backend.silicon`."""
    cells = max(1, atoms // 8)
    sides = [(a, b, cells // (a * b)) for a in range(1, cells + 1) if cells % a == 0 for b in range(1, a + 1)]
    return min((s for s in sides if s[0] * s[1] * s[2] == cells), key=lambda s: max(s) - min(s))


def fit(file: str, form: str, device: str, most: int, seconds: float) -> dict[str, Any]:
    """The largest system that one evaluation holds, by copies of a small crystal: doubled, then halved in between."""
    place, start = torch.device(device), time.perf_counter()
    potential = load(file, form, device=place)
    one = Graph(*(t.to(place) for t in silicon(1000, potential.facts.cutoff)))
    holds, fails, tried = 0, max(1, most // 1000) + 1, 1
    while time.perf_counter() - start < seconds and fails - holds > max(1, holds // 8):
        if _holds(potential, one, tried):
            holds = tried
            tried = min(2 * holds, (holds + fails) // 2) if fails <= 2 * holds else 2 * holds
        else:
            fails = tried
            tried = (holds + fails) // 2
    return {"atoms": 1000 * holds, "in_time": time.perf_counter() - start < seconds}


def _holds(potential: Potential, one: Graph, copies: int) -> bool:
    n = one.numbers.shape[0]
    try:
        shift = torch.arange(copies, device=one.numbers.device)[:, None] * n
        many = Graph(
            one.numbers.repeat(copies),
            torch.stack([(row[None] + shift).flatten() for row in one.edge_index]),
            one.edge_vector.repeat(copies, 1),
            one.batch.repeat(copies),
            one.owned.repeat(copies),
            one.composition * copies,
            one.cell,
        )
        with torch.no_grad():
            potential.evaluate_unchecked(many)
            if one.numbers.is_cuda:
                torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        many = one
        torch.cuda.empty_cache()
        return False
    return True


def check(model: str, device: str, folder: str) -> dict[str, Any]:
    """Energy, forces and stress of the device in each precision beside float64 on the CPU; relative to the largest."""
    place, rows = torch.device(device), {}
    cuda = place.type == "cuda"
    for precision in ("float64", "float32", "tf32"):
        file = Path(folder) / f"{model}-{precision}.pt"
        try:
            make(model, str(file), precision, "eager", "cpu")
        except UserError as error:
            rows[precision] = {"error": str(error)}
            continue
        if precision == "float64":
            wanted = _results(load(file, "eager", device=torch.device("cpu")))
        found = _results(load(file, "eager", device=place))
        rows[precision] = {k: float(abs(found[k] - wanted[k]).max() / abs(wanted[k]).max()) for k in wanted}
    return {
        "deviations": rows,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "name": torch.cuda.get_device_name(place) if cuda else "cpu",
        "memory": torch.cuda.get_device_properties(place).total_memory if cuda else 0,
    }


def _structure() -> Atoms:
    atoms = bulk("Si", "diamond", 5.43, cubic=True) * (3, 3, 3)
    atoms.rattle(0.1, seed=1)
    return atoms


def _results(potential: Potential) -> dict[str, np.ndarray]:
    graph = graph_from_atoms(_structure(), potential.facts.cutoff)
    result = potential.evaluate(graph)
    return {
        "energy": result.energies.sum()[None].numpy(),
        "forces": derivatives.forces(result.edge_forces, graph).numpy(),
        "stress": derivatives.stress(result.edge_forces, graph).numpy(),
    }


JOBS: dict[str, Callable[..., dict[str, Any]]] = {"make": make, "step": step, "fit": fit, "check": check}

if __name__ == "__main__":
    main()
