"""Running LAMMPS from the environment of this interpreter, inside it or as a program, and reading what came out."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_masses, atomic_numbers
from numpy.typing import NDArray

from triforces_deploy import derivatives
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.potential import Potential
from triforces_deploy.units import LAMMPS_BAR

Array = NDArray[np.float64]

Environment = Mapping[str, str | None]
"""Variables to set, or to take away where the value is None."""

QUIET: Environment = {"OMP_NUM_THREADS": "1", "MPIR_CVAR_CH4_PROGRESS_THROTTLE": "1", "LAMMPS_PLUGIN_PATH": None}
"""One thread for each rank, and ranks that wait let others work: tests run more ranks than there are cores. Programs find
the plugin themselves; the path that LAMMPS inside this process has set is not theirs."""

BIN = Path(sys.executable).parent


@dataclasses.dataclass(frozen=True)
class Result:
    """What a structure came out as."""

    energies: Array  # (N,) eV
    forces: Array  # (N, 3) eV/Å
    virial: Array  # (3, 3) eV, LAMMPS' sign

    @property
    def energy(self) -> float:
        return float(self.energies.sum())


def expected(atoms: Atoms, potential: Potential) -> Result:
    """Our own numbers on the periodic graph, with vesin's neighbours and without LAMMPS."""
    graph = graph_from_atoms(atoms, potential.facts.cutoff)
    evaluation = potential.evaluate(graph)
    return Result(
        evaluation.energies.numpy(),
        derivatives.forces(evaluation.edge_forces, graph).numpy(),
        -derivatives.virial(evaluation.edge_forces, graph)[0].numpy(),
    )


class Host:
    """One instance of LAMMPS inside this process."""

    def __init__(self, folder: Path) -> None:
        import lammps

        self.log = folder / "log.lammps"
        self.lmp: Any = lammps.lammps(cmdargs=["-log", str(self.log), "-screen", "none"])

    def __call__(self, text: str) -> None:
        self.lmp.commands_string(text)

    def load(self, atoms: Atoms, elements: Sequence[str] = ("Si", "Ge"), style: str = "atomic") -> None:
        """Start afresh with a structure; its cell must be lower triangular, as LAMMPS wants it."""
        (xx, _, _), (xy, yy, _), (xz, yz, zz) = atoms.cell.array
        kinds = [list(elements).index(s) + 1 for s in atoms.get_chemical_symbols()]
        self("clear\nunits metal\natom_style " + style + "\natom_modify map array sort 0 0")
        self("boundary " + " ".join("p" if periodic else "f" for periodic in atoms.pbc))
        tilted = abs(xy) + abs(xz) + abs(yz) > 0
        shape = f"prism 0 {xx} 0 {yy} 0 {zz} {xy} {xz} {yz}" if tilted else f"block 0 {xx} 0 {yy} 0 {zz}"
        self(f"box tilt large\nregion all {shape} units box\ncreate_box {len(elements)} all")
        self.lmp.create_atoms(len(atoms), None, kinds, atoms.positions.flatten().tolist())
        for kind, symbol in enumerate(elements, start=1):
            self(f"mass {kind} {atomic_masses[atomic_numbers[symbol]]}")
        self("neighbor 1.0 bin\ncompute each all pe/atom\ncompute sum all reduce sum c_each")

    def atoms(self, elements: Sequence[str] = ("Si", "Ge")) -> Atoms:
        """The structure as LAMMPS has it now, in the order of the atoms' ids."""
        n = self.lmp.get_natoms()
        low, high, xy, yz, xz, periodic, _ = self.lmp.extract_box()
        cell = np.diag(np.subtract(high, low))
        cell[1, 0], cell[2, 0], cell[2, 1] = xy, xz, yz
        kinds = self.lmp.gather_atoms("type", 0, 1)
        positions = np.array(self.lmp.gather_atoms("x", 1, 3)).reshape(n, 3) - low
        return Atoms([elements[k - 1] for k in kinds], positions=positions, cell=cell, pbc=np.array(periodic, bool))

    def move(self, positions: Array) -> None:
        """Put the atoms elsewhere, in the order of their ids."""
        flat = np.ascontiguousarray(positions, dtype=float).ravel()
        self.lmp.scatter_atoms("x", 1, 3, flat.ctypes.data_as(ctypes.c_void_p))

    def result(self, steps: int = 0) -> Result:
        """Run and read the outcome at the last step."""
        self("thermo_style custom step pe ke press pxx vol c_sum\nthermo_modify norm no")
        self(f"run {steps}")
        n = self.lmp.get_natoms()
        p = [[self.lmp.get_thermo(f"p{min(a, b)}{max(a, b)}") for b in "xyz"] for a in "xyz"]
        kinetic = self.lmp.get_thermo("ke")
        assert kinetic == 0.0, "pressure would hold a kinetic part"
        return Result(
            np.array(self.lmp.gather("c_each", 1, 1)[:n]),
            np.array(self.lmp.gather_atoms("f", 1, 3)).reshape(n, 3),
            np.array(p) * self.lmp.get_thermo("vol") / LAMMPS_BAR,
        )


@dataclasses.dataclass(frozen=True)
class Ended:
    """A program that has ended."""

    code: int
    text: str
    seconds: float


def lmp(script: str, folder: Path, ranks: int = 1, env: Environment | None = None, timeout: float = 60.0) -> Ended:
    """Run ``lmp`` on an input script in ``folder``, under mpirun when there are several ranks."""
    (folder / "in.test").write_text(script)
    command = [str(BIN / "lmp"), "-in", "in.test", "-log", "none"]
    return run(command, folder, ranks, env, timeout)


def run(command: Sequence[str], folder: Path, ranks: int, env: Environment | None = None, timeout: float = 60.0) -> Ended:
    start = time.monotonic()
    done = subprocess.run(
        [str(BIN / "mpirun"), "-np", str(ranks), *command] if ranks > 1 else list(command),
        cwd=folder,
        env={k: v for k, v in {**os.environ, **QUIET, **(env or {})}.items() if v is not None},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Ended(done.returncode, done.stdout, time.monotonic() - start)


def frames(path: Path) -> list[Array]:
    """The numbers of a dump, one array (atoms, columns) for each frame."""
    return list(_frames(path))


def _frames(path: Path) -> Iterator[Array]:
    lines = path.read_text().splitlines()
    at = 0
    while at < len(lines):
        n = int(lines[at + 3])
        yield np.array([line.split() for line in lines[at + 9 : at + 9 + n]], dtype=float)
        at += 9 + n


@contextmanager
def opened(folder: Path) -> Iterator[Host]:
    host = Host(folder)
    try:
        yield host
    finally:
        host.lmp.close()
