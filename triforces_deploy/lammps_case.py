"""A folder that LAMMPS can run: a structure, and the input that minimises, heats, equilibrates and runs it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from triforces_deploy.errors import UserError
from triforces_deploy.files import replacing
from triforces_deploy.lammps_data import upright, write_extxyz, write_lammps_data

Ensemble = Literal["nve", "nvt", "npt"]

SCRIPT = """\
# Relax, heat, equilibrate, produce: {atoms} atoms. Run: lmp -in in.defect
# Change a variable with -var NAME VALUE. Go on after an interruption with -var resume FILE, one of the two restart files.
variable        name index defect  # prefix of the output files
variable        resume index none
variable        resumed equal is_file(${{resume}})
variable        model index {model}
variable        temperature index {temperature:g}  # K
variable        pressure index {pressure:g}  # bar, where the ensemble is npt
variable        timestep index {timestep:g}  # ps
variable        seed index {seed}  # of the velocities
variable        max_temperature index {max_temperature:g}  # K; what is hotter ends the run
variable        max_energy index {max_energy:g}  # eV/atom of potential energy above the relaxed structure; more ends the run

units           metal
atom_style      atomic
boundary        p p p
{tilt}if "${{resumed}} == 0" then "read_data defect.data" else "read_restart ${{resume}}"

pair_style      triforces ${{model}}
pair_coeff      * * {elements}

timestep        ${{timestep}}
thermo          {thermo}
thermo_style    custom step time temp pe ke etotal econserve press vol
thermo_modify   format float %.13g flush yes

if "${{resumed}} == 1" then "jump SELF dynamics"

minimize        0.0 1e-3 {minimise} {evaluations}
variable        energy_now equal pe/atoms
print           "${{energy_now}}" file ${{name}}.relaxed.energy
write_data      ${{name}}.relaxed.data
reset_timestep  0
velocity        all create {start} ${{seed}} mom yes rot no dist gaussian{why}
write_restart   ${{name}}.restart.b

label           dynamics

variable        relaxed file ${{name}}.relaxed.energy
variable        hottest equal temp
variable        energy equal pe/atoms-v_relaxed
fix             temperature_blew_up all halt {guard} v_hottest > ${{max_temperature}} error hard
fix             energy_blew_up all halt {guard} v_energy > ${{max_energy}} error hard

restart         {restart} ${{name}}.restart.a ${{name}}.restart.b
dump            1 all custom {dump} ${{name}}.dump id type element x y z fx fy fz
dump_modify     1 sort id element {elements}
if "${{resumed}} == 1" then "dump_modify 1 append yes"

{phases}
write_data      ${{name}}.final.data
"""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What the input does, and how often it writes."""

    temperature: float = 300.0
    """K."""
    pressure: float = 0.0
    """bar, for npt."""
    timestep: float = 1.0
    """fs."""
    minimise: int = 500
    """Iterations at most."""
    heat: int = 1000
    """Steps of a thermostat that rises from a tenth of the temperature; 0 starts at the full temperature."""
    equilibrate: int = 1000
    """Steps in ``ensemble``."""
    ensemble: Ensemble = "nvt"
    produce: int = 1000
    """Steps in ``production``."""
    production: Ensemble = "nve"
    every: int = 50
    """Steps between lines of the log."""
    seed: int = 1
    """Of the velocities."""

    def check(self) -> None:
        """UserError for what LAMMPS would not run."""
        if not (0 < self.temperature < 1e5 and 0 < self.timestep <= 100 and self.every >= 1 and abs(self.pressure) < 1e9):
            raise UserError("temperature, timestep and every must be positive, the pressure finite")
        if min(self.minimise, self.heat, self.equilibrate, self.produce) < 0:
            raise UserError("steps of a phase must not be negative; 0 leaves it out")


def write_case(atoms: Atoms, elements: Sequence[str], model: str, folder: Path, schedule: Schedule | None = None) -> Path:
    """Write ``defect.data``, ``defect.extxyz`` and ``in.defect``, which minimises, heats and runs the structure.

    The input follows the rules that make it resumable: steps are absolute, what happens once is skipped after
    ``-var resume FILE``, and two restart files alternate. Dumps are spaced so that they hold about 2 GB in all, restart files
    so that a million atoms lose 100 steps at most and a thousand 1000.

    Args:
        atoms: a periodic structure, triclinic or not.
        elements: symbols in the order of the model; they become LAMMPS' atom types.
        model: the artifact, as ``in.defect`` names it, relative to ``folder`` or absolute.
        folder: made when it is not there.
        schedule: temperatures, lengths, intervals.

    Returns:
        The path of ``in.defect``. Run it inside ``folder``: ``lmp -in in.defect``.

    Raises:
        UserError: an element that the model does not know, a structure that is not periodic, a schedule without sense.
    """
    schedule = schedule or Schedule()
    schedule.check()
    unknown = sorted({chemical_symbols[n] for n in np.unique(atoms.numbers)} - set(elements))
    if unknown:
        raise UserError(f"the structure holds {', '.join(unknown)}; the model knows {', '.join(elements)} only")
    if atoms.cell.rank < 3 or not atoms.pbc.all():
        raise UserError("the structure is not periodic in three directions; give it a cell and pbc")
    folder.mkdir(parents=True, exist_ok=True)
    turned = upright(atoms)
    with replacing(folder / "defect.data") as part:
        write_lammps_data(part, turned, elements)
    with replacing(folder / "defect.extxyz") as part:
        write_extxyz(part, turned)
    with replacing(folder / "in.defect") as part:
        part.write_text(script(turned, elements, model, schedule), encoding="utf-8")
    return folder / "in.defect"


def script(atoms: Atoms, elements: Sequence[str], model: str, schedule: Schedule) -> str:
    """The text of ``in.defect``."""
    steps = schedule.heat + schedule.equilibrate + schedule.produce
    every = schedule.every
    frames = max(2, min(1000, int(2e9 / (100 * len(atoms)))))  # about 100 bytes per atom and frame
    interval = min(1000, max(100, int(1e7 / len(atoms))))
    return SCRIPT.format(
        atoms=len(atoms),
        model=f"""'"{model}"'""" if " " in model else model,
        elements=" ".join(elements),
        temperature=schedule.temperature,
        pressure=schedule.pressure,
        timestep=schedule.timestep / 1000,
        seed=schedule.seed,
        max_temperature=5 * schedule.temperature + 1000,
        max_energy=1.0,
        tilt="" if np.allclose(atoms.cell.array, np.diag(atoms.cell.lengths())) else "box             tilt large\n",
        thermo=every,
        minimise=schedule.minimise,
        evaluations=10 * schedule.minimise,
        start="$(0.2*v_temperature)" if schedule.heat else "$(2*v_temperature)",
        why="" if schedule.heat else "  # half of it turns into potential energy",
        guard=min(10, every),
        restart=_multiple(interval, every),
        dump=_multiple(max(10 * every, steps // frames), every),
        phases="".join(_phases(schedule)),
    )


def _phases(schedule: Schedule) -> list[str]:
    """One line for each phase that has steps."""
    ends = np.cumsum([schedule.heat, schedule.equilibrate, schedule.produce]).tolist()
    target = "${temperature} ${temperature} 0.1"
    fixes = {
        "nve": ("nve",),
        "nvt": (f"nvt temp {target}",),
        "npt": (f"npt temp {target} iso ${{pressure}} ${{pressure}} 1.0",),
        # Cold crystals follow a rising Nosé-Hoover thermostat late and then overshoot; this one has no memory.
        "heat": ("nve", "temp/berendsen $(0.1*v_temperature) ${temperature} 0.02"),
    }
    phases = (
        ("heat", fixes["heat"], schedule.heat, ends[0]),
        ("equilibrate", fixes[schedule.ensemble], schedule.equilibrate, ends[1]),
        ("produce", fixes[schedule.production], schedule.produce, ends[2]),
    )
    return [_phase(name, styles, end - steps, end) for name, styles, steps, end in phases if steps]


def _phase(name: str, styles: Sequence[str], start: int, end: int) -> str:
    """Its fixes, its run to an absolute step; start and stop keep a rising target right after a resume."""
    names = [name + "_bath" * k for k in range(len(styles))]
    commands = [f"fix {n} all {style}" for n, style in zip(names, styles, strict=True)]
    commands += [f"run {end} upto start {start} stop {end}", *(f"unfix {n}" for n in names)]
    return f'if "$(step) <= {end}" then ' + " ".join(f'"{c}"' for c in commands) + "\n"


def _multiple(steps: int, every: int) -> int:
    """The nearest multiple of the log's interval, so that a resumed run goes on at a line of the log."""
    return every * max(1, round(steps / every))
