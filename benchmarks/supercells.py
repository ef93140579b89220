"""Time and memory of `tfdeploy defect` on large supercells, from perfect crystal to files.

    python benchmarks/supercells.py --atoms 100000 1000000 > benchmarks/results/supercells.jsonl

Every figure is of a process of its own on one thread: seconds of wall clock and of processor from the start of the command to
its end, imports included, and the largest resident size. The results kept here are from two cores shared with about 15 other
busy processes: the processor seconds are what a quiet core takes, the wall clock says nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CASES: dict[str, tuple[str, ...]] = {
    "Si, 100 vacancies": ("--host", "Si", "--vacancies", "100"),
    "Si, 0.1% vacancies 8 Å apart, 0.01% interstitials": (
        *("--host", "Si", "--vacancies", "0.1%", "--defect", "Si_i:0.01%", "--apart", "8"),
    ),
    "random alloy Si0.7Ge0.3, 1000 complexes": ("--host", "Si0.7Ge0.3:diamond:5.48", "--defect", "V+Ge_Si:1000"),
    "Cu, grain boundary, 100 interstitials": ("--host", "Cu", "--boundary", "2,1,0/0,0,1", "--defect", "Cu_i:100"),
}


def measure(name: str, n_atoms: int) -> dict[str, object]:
    """Run one case in a child, and a child of its own for that, so that its peak is not another's."""
    program = Path(sys.executable).with_name("tfdeploy")
    with tempfile.TemporaryDirectory() as folder:
        command = [str(program), "defect", *CASES[name], "--atoms", str(n_atoms), "-o", f"{folder}/md", "--json"]
        start = time.perf_counter()
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        wall = time.perf_counter() - start
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        size = sum(p.stat().st_size for p in Path(folder, "md").iterdir())
        shutil.rmtree(folder, ignore_errors=True)
        Path(folder).mkdir()
    return {
        "case": name,
        "atoms": json.loads(done.stdout)["atoms"],
        "seconds": round(wall, 1),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_GiB": round(used.ru_maxrss / 2**20, 2),
        "files_MB": round(size / 1e6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--atoms", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure(options.cases[0], options.atoms[0]), ensure_ascii=False))
        return
    for n_atoms in options.atoms:
        for case in options.cases:
            subprocess.run([sys.executable, __file__, "--here", "--atoms", str(n_atoms), "--cases", case], check=True)


if __name__ == "__main__":
    main()
