"""Two ranks against one with two threads, on the same cores; and what the exchange of features takes of a step.

    python benchmarks/two_ranks.py [--sizes full demo] [--cells 2 2 8] [--steps 5] [--precision float32] [--backend aoti]
    python benchmarks/two_ranks.py --artifact full.pt --steps 1

Silicon, random weights: 'full' are the sizes of the paper (five Orb layers, 256 wide), 'demo' those of the demo recipe; or a
file that is there. The box is long, and LAMMPS cuts it across, so that each rank has more atoms than it sees of the other's.
A step of the full size takes some 400 GFLOP. Every row is a LAMMPS of its own:

    ms_per_step         of the whole loop, the median of several runs
    exchange_ms         in the exchange, on the rank that spends most, waiting for the other rank included
    transfer_ms         the same when all ranks meet before each exchange: what moving the rows takes by itself, and thus
                        the most that overlapping communication with work could save where the load is even
    self_test_ms        the test of the exchange at the start
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ase.data import atomic_masses, atomic_numbers

BIN = Path(sys.executable).parent
REPEATS = 3


def make(size: str, precision: str, backend: str, folder: Path) -> Path:
    import torch

    from triforces_deploy import checkpoint
    from triforces_deploy.config import ModelConfig
    from triforces_deploy.export.exporting import ExportOptions, export
    from triforces_deploy.model import Model

    torch.manual_seed(0)
    if size == "full":
        config = ModelConfig(elements=("Si", "Ge"))
    else:
        from triforces_deploy.training.recipe import load_recipe

        config = load_recipe("demo").model
    model = Model(config)
    model.set_network_dtype(torch.float64)
    checkpoint.save(folder / "model.ckpt", model.eval(), {"data": "random weights"})
    out = folder / f"{size}.pt"
    export(folder / "model.ckpt", out, ExportOptions(precision=precision, backends=() if backend == "eager" else (backend,)))
    return out


def run_here(path: str, cells: list[int], steps: int, meet: bool) -> None:
    """One LAMMPS, inside this interpreter; rank 0 prints a JSON line."""
    import lammps

    from triforces_deploy import artifact
    from triforces_deploy.lammps_plugin.halo import Halo
    from triforces_deploy.lammps_plugin.session import Session

    spent = {"exchange": 0.0, "test": 0.0}

    def timed(owner: Any, name: str, key: str) -> None:
        function = getattr(owner, name)

        def measured(self: Any, *arguments: Any, **options: Any) -> Any:
            if meet and key == "exchange":
                self.total([0.0])
            start = time.perf_counter()
            result = function(self, *arguments, **options)
            spent[key] += time.perf_counter() - start
            return result

        setattr(owner, name, measured)

    timed(Halo, "_moved", "exchange")
    timed(Session, "test", "test")
    symbols = artifact.read_artifact(Path(path)).metadata.facts.elements
    masses = "\n".join(f"mass {k} {atomic_masses[atomic_numbers[s]]}" for k, s in enumerate(symbols, start=1))
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log"
        host = lammps.lammps(cmdargs=["-log", str(log), "-screen", "none"])
        host.commands_string(
            f"units metal\nlattice diamond 5.431\nregion all block 0 {cells[0]} 0 {cells[1]} 0 {cells[2]}\n"
            f"create_box {len(symbols)} all\n"
            f"create_atoms 1 box\n{masses}\nneighbor 1.0 bin\nneigh_modify every 1 delay 0 check yes\n"
            f"pair_style triforces {path}\npair_coeff * * {' '.join(symbols)}\n"
            "velocity all create 600 1 loop all\nfix 1 all nve\nthermo 100000\nrun 1\n"
        )
        loops, exchanges = [], []
        for _ in range(REPEATS):
            spent["exchange"], start = 0.0, time.perf_counter()
            host.command(f"run {steps} pre no post no")
            loops.append((time.perf_counter() - start) / steps)
            exchanges.append(spent["exchange"] / steps)
        text = log.read_text() if host.extract_setting("world_rank") == 0 else ""
        largest = host.extract_setting("nghost")
        rank = host.extract_setting("world_rank")
    line = {"rank": rank, "atoms": host.get_natoms(), "ghosts": largest, "ms_per_step": 1e3 * statistics.median(loops)}
    line |= {"exchange_ms": 1e3 * statistics.median(exchanges), "self_test_ms": 1e3 * spent["test"]}
    moved = [words for words in text.splitlines() if "exchanged in the first evaluation" in words]
    line |= {"bytes": moved[0].split(": ")[1] if moved else ""}
    print("ROW " + json.dumps(line), flush=True)


def measure(path: Path, ranks: int, threads: int, cells: list[int], steps: int, meet: bool) -> dict[str, Any]:
    command = [str(BIN / "mpirun"), "-np", str(ranks), sys.executable, __file__, "--here", str(path)]
    command += ["--cells", *map(str, cells), "--steps", str(steps)] + ["--meet"] * meet
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    lines = [json.loads(line.split("ROW ")[1]) for line in done.stdout.splitlines() if "ROW " in line]
    worst: dict[str, Any] = max(lines, key=lambda line: line["exchange_ms"])
    worst["bytes"] = next((line["bytes"] for line in lines if line["bytes"]), "")
    worst["self_test_ms"] = max(line["self_test_ms"] for line in lines)
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=["full", "demo"], default=["demo", "full"])
    parser.add_argument("--artifact", type=Path, help="measure this file and make none")
    parser.add_argument("--cells", type=int, nargs=3, default=[2, 2, 8])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--backend", default="eager", choices=["eager", "aoti", "torchscript"])
    parser.add_argument("--here", help=argparse.SUPPRESS)
    parser.add_argument("--meet", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        run_here(options.here, options.cells, options.steps, options.meet)
        return
    with tempfile.TemporaryDirectory() as scratch:
        for size in [options.artifact.stem] if options.artifact else options.sizes:
            path = options.artifact or make(size, options.precision, options.backend, Path(scratch))
            for ranks, threads in ((1, 2), (2, 1)):
                found = measure(path, ranks, threads, options.cells, options.steps, meet=False)
                row = {"model": size, "ranks": ranks, "threads": threads, **found}
                if ranks > 1:
                    met = measure(path, ranks, threads, options.cells, options.steps, meet=True)
                    row["transfer_ms"] = met["exchange_ms"]
                row = {k: v for k, v in row.items() if k != "rank" and v != ""}
                print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}), flush=True)


if __name__ == "__main__":
    main()
