"""Every benchmark in turn, into benchmarks/results/. Needs the artifact that `make demo` leaves in demo/."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
ARTIFACT = HERE.parent / "demo" / "triforces.pt"


def help_time() -> str:
    """Median seconds of `tfdeploy --help` over five starts."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([Path(sys.executable).with_name("tfdeploy"), "--help"], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return f"{sorted(times)[2]:.2f} s"


def main() -> None:
    if not ARTIFACT.is_file():
        sys.exit("demo/triforces.pt is not there; run `make demo` first")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    (HERE / "results").mkdir(exist_ok=True)
    lines = [
        f"# {platform.processor() or platform.machine()}, {os.cpu_count()} cores, one thread",
        f"tfdeploy --help: {help_time()}",
    ]
    for script, *arguments in (
        ("backends.py", "--recipe", "demo", "--atoms", "64", "1000", "--precision", "float64", "--allocator", "tuned"),
        ("lammps_parity.py", str(ARTIFACT)),
        ("interface_cost.py",),
        ("nve_drift.py", str(ARTIFACT)),
        ("lammps_memory.py", str(ARTIFACT)),
    ):
        print(script, flush=True)
        command = [sys.executable, str(HERE / script), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        lines += ["", f"## {script}", done.stdout.strip()]
        print(done.stdout, flush=True)
        (HERE / "results" / "cpu.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
