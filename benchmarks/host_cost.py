"""What the host does in a step beside a GPU: LAMMPS' C++ side, Python and the copies of positions and forces, in ms.

    OMP_NUM_THREADS=1 python benchmarks/host_cost.py [repeats of the silicon cell along each edge, 23 for 97,336 atoms]

Needs no GPU: the route by positions runs on the CPU and what a device would do is left out, so that its results are zeros.
Processor time, which a busy machine does not lengthen much, over that of the same run with LAMMPS' style that does nothing;
the median of several runs. A list is what a new neighbour list costs beyond that: it is put in one piece and copied.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from interface_cost import CUTOFF, REPEATS, STEPS, crystal
from torch import Tensor

from triforces_deploy import artifact
from triforces_deploy.derivatives import Derivative
from triforces_deploy.lammps_plugin.on_device import Layout
from triforces_deploy.lammps_plugin.placement import ROUTE
from triforces_deploy.lammps_plugin.positions import Positions
from triforces_deploy.lammps_plugin.recording import Workspace
from triforces_deploy.lammps_plugin.skin import Frame, Sizes, Skin
from triforces_deploy.lammps_plugin.views import view
from triforces_deploy.potential import Facts, Potential


class HostOnly(Positions):
    """The route without the work of a device."""

    def _take_list(self, frame: Frame, positions: Tensor) -> None:  # noqa: ARG002
        self._pairs = object()  # type: ignore[assignment]
        self.copies = [
            view(address, (length,), kind).clone()
            for address, length, kind in (
                (frame.centre, frame.centres, "<i4"),
                (frame.first, frame.centres + 1, "<i8"),
                (frame.neighbour, frame.pairs, "<i4"),
                (frame.row, frame.atoms, "<i4"),
            )
        ]
        none = torch.zeros(0)
        skin = Skin(*(none for _ in Skin._fields))._replace(cell=torch.zeros(1, 3, 3, dtype=torch.float64))
        self._space = Workspace(Sizes(frame.atoms, frame.rows, 0, 0), skin, CUTOFF)
        self.zeros = torch.zeros(Layout(frame.rows, False).atom_virials, dtype=torch.float64)
        self.zeros[Layout(frame.rows, False).shortest] = 4.0

    def _take_numbers(self, frame: Frame) -> None:
        self.numbers = view(frame.numbers, (frame.rows,), "<i8").clone()

    def _evaluated(self, space: Workspace, frame: Frame) -> Tensor:  # noqa: ARG002
        return self.zeros


def main() -> None:
    torch.set_num_threads(1)
    os.environ[ROUTE] = "positions"
    facts = Facts(
        elements=("Si",), cutoff=CUTOFF, n_exchanges=0, receptive_field=CUTOFF, bidirectional=False, composition="none"
    )
    artifact.load = lambda *_: Potential(facts, lambda _graph: Derivative(torch.zeros(0), torch.zeros(0)), "eager")  # type: ignore[assignment]
    import triforces_deploy.lammps_plugin.session as session

    session.Positions = HostOnly  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as name:
        host = crystal(Path(name), int(sys.argv[1]) if len(sys.argv) > 1 else 23)
        n = host.get_natoms()
        ours, nothing = "triforces none.pt\npair_coeff * * Si", f"zero {CUTOFF} full\npair_coeff * *"
        step, with_lists = (processor_time(host, ours, every) - processor_time(host, nothing, every) for every in (1000, 2))
        print(f"{n} atoms, 1 thread: {1e3 * step:.2f} ms a step, {2e3 * (with_lists - step):.2f} ms more for a list")
        host.close()


def processor_time(host: Any, style: str, every: int) -> float:
    """Seconds per step, neighbour lists at every ``every`` steps."""
    host.commands_string(f"pair_style {style}\nneigh_modify every {every} delay 0 check no\nrun 2")
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        host.command(f"run {STEPS} pre no post no")
        times.append((time.process_time() - start) / STEPS)
    return statistics.median(times)


if __name__ == "__main__":
    main()
