"""What an evaluation costs in each compiled form, next to the eager model in the same run, in µs per atom.

    OMP_NUM_THREADS=1 python benchmarks/evaluation_speed.py triforces.pt [--cells 3 5]

Rattled silicon of 8·n³ atoms. Back ends take turns, so that a busy machine is unfair to all alike; medians over repeats.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from ase.build import bulk

from triforces_deploy.artifact import potential, read_artifact
from triforces_deploy.neighbours import graph_from_atoms

REPEATS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--cells", type=int, nargs="+", default=[3, 5])
    options = parser.parse_args()
    artifact = read_artifact(options.artifact)
    forms = {name: potential(artifact, "artifact", name) for name in ("eager", *artifact.payloads)}
    for n in options.cells:
        atoms = bulk("Si", "diamond", 5.43, cubic=True).repeat(n)
        atoms.rattle(0.05, seed=0)
        graph = graph_from_atoms(atoms, artifact.metadata.facts.cutoff)
        times: dict[str, list[float]] = {name: [] for name in forms}
        for repeat in range(REPEATS + 2):
            for name, form in forms.items():
                start = time.perf_counter()
                form.evaluate(graph)
                if repeat >= 2:  # the first are warm-up
                    times[name].append(1e6 * (time.perf_counter() - start) / len(atoms))
        medians = {name: round(statistics.median(values), 1) for name, values in times.items()}
        ratios = {f"{name}/eager": round(value / medians["eager"], 2) for name, value in medians.items() if name != "eager"}
        edges = round(graph.edge_vector.shape[0] / len(atoms), 1)
        print(json.dumps({"atoms": len(atoms), "edges_per_atom": edges, "us_per_atom": medians, **ratios}))


if __name__ == "__main__":
    main()
