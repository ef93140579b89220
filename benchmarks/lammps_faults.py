"""How soon a job on two ranks ends when one of them fails, and with how many messages.

    python benchmarks/lammps_faults.py triforces.pt [--faults 'rank killed']

Something goes wrong on rank 1 in its fifth evaluation, or before the first. One JSON line for each fault: seconds from there
to the end of mpirun, its exit code, and the lines that LAMMPS began with ERROR.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ase.data import atomic_masses, atomic_numbers

BIN = Path(sys.executable).parent
INPUT = """
units metal
lattice diamond 5.431
region all block 0 3 0 3 0 3
create_box {types} all
create_atoms 1 box
{masses}
pair_style triforces {artifact}
pair_coeff * * {symbols}
velocity all create 600 1 loop all
fix 1 all nve
run 1000000
"""
FAULTY = """
import os, time
def now():
    with open("fault", "w") as file:
        file.write(repr(time.time()))
if os.readlink("/proc/self/exe").endswith("/lmp") and os.environ.get("PMI_RANK") == "1":
    from triforces_deploy.lammps_plugin import placement, session, startup
    from triforces_deploy.potential import Potential
    evaluate, calls = Potential.evaluate, []
    def broken(*_arguments, **_options):
        now()
        raise RuntimeError("broken on purpose")
    def faulty(self, graph, handler=None):
        calls.append(1)
        result = evaluate(self, graph, handler)
        if len(calls) == 5:
            now()
            {fault}
        return result
    {place}
"""
DURING = "Potential.evaluate = faulty"
FAULTS = {
    "exception while opening the file": ("pass", "placement.artifact.load = broken"),
    "exception while checking the run": ("pass", "startup.describe = broken"),
    "exception while trying the exchange": ("pass", "session.self_test = broken"),
    "exception in a step": ("raise RuntimeError('broken on purpose')", DURING),
    "energy that is not finite": ("result.energies[0] = float('nan')", DURING),
    "force that is not finite": ("result.edge_forces[0] = float('inf')", DURING),
    "rank killed": ("os.kill(os.getpid(), 9)", DURING),
    "launcher of a rank killed": ("os.kill(os.getppid(), 9); time.sleep(60)", DURING),
    "rank terminated": ("os.kill(os.getpid(), 15)", DURING),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--faults", nargs="+", choices=list(FAULTS), default=list(FAULTS), metavar="NAME")
    options = parser.parse_args()
    from triforces_deploy.artifact import read_artifact

    elements = read_artifact(options.artifact).metadata.facts.elements
    masses = "\n".join(f"mass {k} {atomic_masses[atomic_numbers[s]]}" for k, s in enumerate(elements, start=1))
    words = {"types": len(elements), "symbols": " ".join(elements), "masses": masses}
    script = INPUT.format(artifact=options.artifact.resolve(), **words)
    for name in options.faults:
        fault, place = FAULTS[name]
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "in.run").write_text(script)
            (Path(folder) / "sitecustomize.py").write_text(FAULTY.replace("{fault}", fault).replace("{place}", place))
            command = [str(BIN / "mpirun"), "-np", "2", str(BIN / "lmp"), "-in", "in.run", "-log", "none"]
            environment = {**os.environ, "PYTHONPATH": folder, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
            )
            seconds = time.time() - float((Path(folder) / "fault").read_text())
            errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("ERROR")]
            print(
                json.dumps({"fault": name, "seconds": round(seconds, 2), "code": done.returncode, "errors": errors}), flush=True
            )


if __name__ == "__main__":
    main()
