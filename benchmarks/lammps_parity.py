"""How far LAMMPS on many ranks is from one rank, at every step, and from ASE with the same artifact along a trajectory.

    OMP_NUM_THREADS=1 python benchmarks/lammps_parity.py triforces.pt [--steps 200] [--ranks 1 2 4 8] [--cells thin empty]

Runs at constant energy of every cell on 1, 2, 4 and 8 ranks, on a grid and on tiles that are rebalanced every tenth step:
the largest deviations of energy, forces and stress from one rank over all steps, each relative to the largest value of that
step. 'empty' is a cluster thrown through a long box, so that ranks lose all their atoms and get others; 'thin' is a box
whose shares on 8 ranks are below two cutoffs. Then the defect supercell on one rank for longer, every tenth step against the
ASE calculator. One JSON line for each.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.io import iread, write

from triforces_deploy.artifact import read_artifact
from triforces_deploy.calculator import TriForcesCalculator
from triforces_deploy.defects import defective
from triforces_deploy.report import read_thermo
from triforces_deploy.units import LAMMPS_BAR

BIN = Path(sys.executable).parent
ASE_EVERY = 10
INPUT = """
units metal
boundary {boundary}
box tilt large
comm_style {communication}
atom_modify sort 20 0.0
read_data system.data
{balance}
neighbor 1.0 bin
neigh_modify every 1 delay 0 check yes
pair_style triforces {artifact}
pair_coeff * * {elements}
velocity all create {temperature} 11 loop all dist gaussian
{thrown}
compute virial all pressure NULL virial
thermo 1
thermo_style custom step pe etotal c_virial[*] vol
thermo_modify format float %.17g norm no
timestep 0.001
fix 1 all nve
dump 1 all custom {every} dump.out id type x y z fx fy fz
dump_modify 1 sort id format float %.17g
run {steps}
"""
RCB = "balance 1.0 rcb\nfix balance all balance 10 1.0 rcb"
THROWN = "velocity all set 300 NULL NULL sum yes units box"


def cells(symbols: tuple[str, ...]) -> dict[str, tuple[Atoms, str, str]]:
    """Structure, boundary and what is done to its velocities; of silicon with some of the model's other elements."""
    others = [s for s in symbols if s != "Si"]
    orthogonal = defective("Si", 216, ["V:2", *(f"{s}_Si:6" for s in others[:1])], seed=1).atoms
    orthogonal.rattle(0.08, seed=2)
    sheared = orthogonal.copy()
    cell = sheared.cell.array.copy()
    cell[1, 0], cell[2, 0], cell[2, 1] = 3.0, -2.0, 4.0
    sheared.set_cell(cell, scale_atoms=True)
    slab = orthogonal.copy()
    slab.set_cell(np.diag(slab.cell.lengths() + np.array([0, 0, 12.0])))
    slab.positions[:, 2] += 6.0
    slab.pbc = (True, True, False)
    thin = bulk("Si", "diamond", 5.43, cubic=True) * (2, 2, 1)
    thin.rattle(0.08, seed=3)
    cluster = bulk("Si", "diamond", 5.43, cubic=True) * (1, 2, 2)
    cluster.rattle(0.03, seed=4)
    cluster.set_cell(np.diag([60.0, 18.0, 18.0]))
    cluster.positions += 3.0
    return {
        "orthogonal": (orthogonal, "p p p", ""),
        "triclinic": (sheared, "p p p", ""),
        "slab": (slab, "p p f", ""),
        "thin": (thin, "p p p", ""),
        "empty": (cluster, "p p p", THROWN),
    }


def lammps(folder: Path, ranks: int, tiled: bool, **text: object) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Energies (steps,), forces (steps, atoms, 3) and virial pressures (steps, 6)."""
    style = {"communication": "tiled" if tiled else "brick", "balance": RCB if tiled else ""}
    (folder / "in.run").write_text(INPUT.format(**style, **text))
    command = [str(BIN / "mpirun"), "-np", str(ranks), str(BIN / "lmp"), "-in", "in.run", "-log", "log.out", "-screen", "none"]
    # Ranks that wait let others work: there may be more of them than cores.
    subprocess.run(command, cwd=folder, check=True, env={**os.environ, "MPIR_CVAR_CH4_PROGRESS_THROTTLE": "1"})
    thermo = read_thermo(folder / "log.out")[-1]
    forces = np.stack([atoms.get_forces() for atoms in iread(folder / "dump.out", format="lammps-dump-text")])
    return thermo["PotEng"], forces, np.stack([thermo[f"c_virial[{k}]"] for k in range(1, 7)], axis=1)


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest deviation at any step over the largest value of that step."""
    flat = found.reshape(len(found), -1), wanted.reshape(len(wanted), -1)
    return float((np.abs(flat[0] - flat[1]).max(axis=1) / np.abs(flat[1]).max(axis=1)).max())


def matrix(options: argparse.Namespace, elements: tuple[str, ...]) -> Iterator[dict[str, object]]:
    for name, (atoms, boundary, thrown) in cells(elements).items():
        if name not in options.cells:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write(folder / "system.data", atoms, format="lammps-data", specorder=list(elements), masses=True)
            text = {
                "artifact": options.artifact.resolve(), "elements": " ".join(elements), "boundary": boundary,
                "thrown": thrown, "steps": options.steps, "every": 1, "temperature": 600,
            }  # fmt: skip
            one = None
            for ranks in options.ranks:
                # LAMMPS itself loses neighbours of triclinic boxes on tiles; the pair style refuses them.
                for tiled in (False, True) if ranks > 1 and name != "triclinic" else (False,):
                    found = lammps(folder, ranks, tiled, **text)
                    one = found if one is None else one
                    worst = dict(zip(("energy", "forces", "stress"), map(relative, found, one), strict=True))
                    yield {"cell": name, "atoms": len(atoms), "ranks": ranks, "tiled": tiled, "steps": options.steps, **worst}


def against_ase(options: argparse.Namespace, elements: tuple[str, ...]) -> Iterator[dict[str, object]]:
    atoms, boundary, _ = cells(elements)["triclinic"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write(folder / "system.data", atoms, format="lammps-data", specorder=list(elements), masses=True)
        energies, forces, pressures = lammps(
            folder, 1, False, artifact=options.artifact.resolve(), elements=" ".join(elements), boundary=boundary,
            thrown="", steps=options.ase_steps, every=ASE_EVERY, temperature=600,
        )  # fmt: skip
        worst = np.zeros(3)
        calculator = TriForcesCalculator(options.artifact)
        for k, frame in enumerate(iread(folder / "dump.out", format="lammps-dump-text", specorder=list(elements))):
            frame.calc = calculator
            step = k * ASE_EVERY
            # LAMMPS: xx yy zz xy xz yz, bar, pressed is positive; ASE: xx yy zz yz xz xy.
            stress = -pressures[step][[0, 1, 2, 5, 4, 3]] / LAMMPS_BAR
            worst = np.maximum(
                worst,
                [
                    abs(energies[step] - frame.get_potential_energy()) / len(frame),
                    np.abs(forces[k] - frame.get_forces()).max(),
                    np.abs(stress - frame.get_stress()).max(),
                ],
            )
    names = ("energy_eV_per_atom", "forces_eV_A", "stress_eV_A3")
    row = {"against": "ASE", "atoms": len(atoms), "steps": options.ase_steps, "frames": k + 1}
    yield {**row, **dict(zip(names, map(float, worst), strict=True))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--ase-steps", type=int, default=1000)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--cells", nargs="+", default=["orthogonal", "triclinic", "slab", "thin", "empty"])
    options = parser.parse_args()
    elements = read_artifact(options.artifact).metadata.facts.elements
    for row in itertools.chain(matrix(options, elements), against_ase(options, elements)):
        print(json.dumps({k: float(f"{v:.1e}") if isinstance(v, float) else v for k, v in row.items()}), flush=True)


if __name__ == "__main__":
    main()
