"""How far LAMMPS is from ASE with the same artifact, on 1, 2 and 4 ranks and on rebalanced tiles.

    OMP_NUM_THREADS=1 python benchmarks/lammps_parity.py triforces.pt

A defect supercell of 512 atoms, once orthogonal and once sheared. Largest deviations, one JSON line per run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read, write

from triforces_deploy.artifact import read_artifact
from triforces_deploy.calculator import TriForcesCalculator
from triforces_deploy.defects import defective
from triforces_deploy.report import read_thermo
from triforces_deploy.units import LAMMPS_BAR

BIN = Path(sys.executable).parent
INPUT = """
units metal
box tilt large
{communication}
read_data system.data
{balance}
pair_style triforces {artifact}
pair_coeff * * {elements}
thermo_style custom step pe pxx pyy pzz pyz pxz pxy
thermo_modify format float %.17g norm no
dump 1 all custom 1 dump.out id type x y z fx fy fz
dump_modify 1 sort id format float %.17g
run 0
"""


def lammps(
    folder: Path, artifact: Path, elements: tuple[str, ...], ranks: int, tiled: bool
) -> tuple[float, np.ndarray, np.ndarray]:
    """Energy, forces and stress (ASE's order and sign) of ``system.data``."""
    text = INPUT.format(
        artifact=artifact.resolve(),
        elements=" ".join(elements),
        communication="comm_style tiled" if tiled else "",
        balance="balance 1.0 rcb" if tiled else "",
    )
    (folder / "in.run").write_text(text)
    command = [str(BIN / "mpirun"), "-np", str(ranks), str(BIN / "lmp"), "-in", "in.run", "-log", "log.out", "-screen", "none"]
    subprocess.run(command, cwd=folder, check=True)
    thermo = read_thermo(folder / "log.out")[-1]
    stress = -np.array([thermo[name][-1] for name in ("Pxx", "Pyy", "Pzz", "Pyz", "Pxz", "Pxy")]) / LAMMPS_BAR
    return float(thermo["PotEng"][-1]), read(folder / "dump.out", format="lammps-dump-text").get_forces(), stress


def cases() -> dict[str, Atoms]:
    orthogonal = defective("Si", 512, ["V:2", "Ge_Si:8"], seed=1).atoms
    orthogonal.rattle(0.08, seed=2)
    sheared = orthogonal.copy()
    cell = sheared.cell.array.copy()
    cell[1, 0], cell[2, 0], cell[2, 1] = 3.0, -2.0, 4.0
    sheared.set_cell(cell, scale_atoms=True)
    return {"orthogonal": orthogonal, "triclinic": sheared}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    options = parser.parse_args()
    elements = read_artifact(options.artifact).metadata.facts.elements
    for name, atoms in cases().items():
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write(folder / "system.data", atoms, format="lammps-data", specorder=list(elements), masses=True)
            atoms.calc = TriForcesCalculator(options.artifact)
            one = None
            for ranks, tiled in ((1, False), (2, False), (4, False), (4, True)):
                energy, forces, stress = lammps(folder, options.artifact, elements, ranks, tiled)
                row = {
                    "cell": name,
                    "ranks": ranks,
                    "tiled": tiled,
                    "energy_eV_per_atom": abs(energy - atoms.get_potential_energy()) / len(atoms),
                    "forces_eV_A": float(np.abs(forces - atoms.get_forces()).max()),
                    "stress_eV_A3": float(np.abs(stress - atoms.get_stress()).max()),
                }
                if one is not None:
                    row["forces_relative_to_one_rank"] = float(np.abs(forces - one).max() / np.abs(one).max())
                one = forces if one is None else one
                print(json.dumps({k: float(f"{v:.1e}") if isinstance(v, float) else v for k, v in row.items()}), flush=True)


if __name__ == "__main__":
    main()
