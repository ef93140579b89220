"""A folder that LAMMPS can run: a structure, and the input that minimises, heats and runs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ase import Atoms

from triforces_deploy.errors import UserError
from triforces_deploy.files import replacing

SCRIPT = """\
# Relax a defect, heat it, then watch it at constant energy. Run: lmp -in in.defect
variable        name index defect             # prefix of the output files; change it with -var name other
units           metal
atom_style      atomic
boundary        p p p
read_data       defect.data

pair_style      triforces {artifact}
pair_coeff      * * {elements}

thermo          {thermo}
thermo_style    custom step time temp pe ke etotal press vol
thermo_modify   format float %.13g

minimize        0.0 1e-3 500 5000

write_data      ${{name}}.relaxed.data

reset_timestep  0
dump            1 all custom {dump} ${{name}}.dump id type element x y z fx fy fz
dump_modify     1 sort id element {elements}
restart         {restart} ${{name}}.restart.a ${{name}}.restart.b
timestep        {timestep:g}
velocity        all create $(2*{temperature:g}) {seed} mom yes rot no dist gaussian  # half of it turns into potential energy
fix             1 all nvt temp {temperature:g} {temperature:g} 0.1
run             {nvt}
unfix           1

fix             1 all nve
run             {nve}
unfix           1

write_data      ${{name}}.final.data
"""


def write_case(
    atoms: Atoms,
    elements: Sequence[str],
    artifact: str,
    folder: Path,
    *,
    temperature: float = 300.0,
    timestep: float = 1.0,
    nvt_steps: int = 1000,
    nve_steps: int = 1000,
    every: int = 50,
    seed: int = 1,
) -> Path:
    """Write ``defect.data``, ``defect.extxyz`` and ``in.defect``, which minimises, heats and runs the structure.

    Args:
        atoms: a periodic structure, triclinic or not.
        elements: symbols in the order of the model; they become LAMMPS' atom types.
        artifact: the exported model, as ``in.defect`` names it, relative to ``folder`` or absolute.
        folder: made when it is not there.
        temperature: K.
        timestep: fs.
        nvt_steps: steps with a Nosé-Hoover thermostat.
        nve_steps: steps at constant energy after that.
        every: steps between lines of the log, frames of the dump (×10) and restart files (×20).
        seed: of the initial velocities.

    Returns:
        The path of ``in.defect``. Run it inside ``folder``: ``lmp -in in.defect``.
    """
    unknown = sorted(set(atoms.get_chemical_symbols()) - set(elements))
    if unknown:
        raise UserError(f"the structure holds {', '.join(unknown)}; the model knows {', '.join(elements)} only")
    if atoms.cell.rank < 3 or not atoms.pbc.all():
        raise UserError("the structure is not periodic in three directions; give it a cell and pbc")
    if temperature <= 0 or timestep <= 0 or every < 1 or min(nvt_steps, nve_steps) < 0:
        raise UserError("temperature, timestep and every must be positive, nvt_steps and nve_steps not negative")
    from ase.io import write

    folder.mkdir(parents=True, exist_ok=True)
    wrapped = atoms.copy()
    wrapped.wrap()
    plain = Atoms(wrapped)
    with replacing(folder / "defect.data") as part:
        write(part, plain, format="lammps-data", specorder=list(elements), masses=True, units="metal", atom_style="atomic")
    with replacing(folder / "defect.extxyz") as part:
        write(part, wrapped, format="extxyz")
    script = SCRIPT.format(
        artifact=f'"{artifact}"' if " " in artifact else artifact,
        elements=" ".join(elements),
        temperature=temperature,
        timestep=timestep / 1000,
        nvt=nvt_steps,
        nve=nve_steps,
        thermo=every,
        dump=10 * every,
        restart=20 * every,
        seed=seed,
    )
    with replacing(folder / "in.defect") as part:
        part.write_text(script)
    return folder / "in.defect"
