"""What compiling a fit to labels costs and gains: one small model, step by step, compiled and not.

    python benchmarks/compiled_step.py > benchmarks/results/compiled_step.txt

A step is energy, forces and stress of silicon crystals of 64 rattled atoms and the derivative of their mean squares by all
parameters, of the recipe 'demo' in float32; one thread, processor time, median; both take turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from training_step import crystals

from triforces_deploy.graph import Graph, collate
from triforces_deploy.model import Model
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.training.compiled import CompiledPredict
from triforces_deploy.training.objective import predict
from triforces_deploy.training.recipe import load_recipe

REPEATS = 7


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    plan = load_recipe("demo").model
    model = Model(plan)
    model.set_network_dtype(torch.float32)
    parameters = [p for p in model.parameters() if p.requires_grad]
    graphs = [collate([graph_from_atoms(a, plan.cutoff) for a in crystals(n)]) for n in (2, 3, 4)]
    compiled = CompiledPredict()

    def gradients(forward: Callable[[Graph], tuple[Tensor, ...]], graph: Graph) -> tuple[Tensor, ...]:
        loss = torch.stack([part.square().mean() for part in forward(graph)]).sum()
        found: tuple[Tensor, ...] = torch.autograd.grad(loss, parameters, allow_unused=True)
        return found

    forms: dict[str, Callable[[Graph], tuple[Tensor, ...]]] = {
        "eager": lambda graph: predict(model, graph, create_graph=True),
        "compiled": lambda graph: compiled(model, graph),
    }
    start, clock = time.process_time(), time.perf_counter()
    for graph in graphs:
        gradients(forms["compiled"], graph)
    print(f"compiling: {time.perf_counter() - clock:.0f} s, {time.process_time() - start:.0f} s of this process", flush=True)
    for graph in graphs:
        found = [gradients(form, graph) for form in forms.values()]
        largest = max(float(g.abs().max()) for g in found[0] if g is not None)
        worst = max(float((a - b).abs().max()) for a, b in zip(*found, strict=True) if a is not None)
        seconds: dict[str, list[float]] = {name: [] for name in forms}
        for _ in range(REPEATS):
            for name, form in forms.items():
                start = time.process_time()
                gradients(form, graph)
                seconds[name].append(time.process_time() - start)
        eager, fast = (1000 * statistics.median(seconds[name]) for name in forms)
        print(
            f"{graph.numbers.shape[0]} atoms, {graph.edge_index.shape[1]} edges: eager {eager:.1f} ms, compiled {fast:.1f} ms, "
            f"{eager / fast:.2f}×; gradients differ by {worst / largest:.1e} of the largest",
            flush=True,
        )


if __name__ == "__main__":
    main()
