"""Whether mpirun and a LAMMPS program speak the same MPI."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from triforces_deploy.lammps_plugin.doctor.executables import Executable, script
from triforces_deploy.lammps_plugin.doctor.programs import ended

FLAVOURS = ("Open MPI", "Intel(R) MPI", "MPICH", "HYDRA")
"""What libraries and launchers call themselves; the launcher of MPICH is HYDRA."""


def launcher(path: str) -> str | None:
    """The mpirun beside a program, that of this environment for its own, or the first on PATH."""
    for folder in (Path(path).parent, Path(sys.executable).parent if _ours(path) else None):
        if folder is not None and (folder / "mpirun").is_file():
            return str(folder / "mpirun")
    return shutil.which("mpirun")


def trouble(executable: Executable, mpirun: str | None) -> tuple[str, str]:
    """Why several ranks do not work, and what to do; both empty where they do. Tried with two ranks."""
    if not executable.mpi or "STUBS" in executable.mpi:
        return "built without MPI", "build LAMMPS with BUILD_MPI=on"
    if mpirun is None:
        return "no mpirun on PATH", f"install or load the MPI it was built with: {flavour(executable.mpi)}"
    answer = script(executable.path, 'print "tfdeploy-ranks $(extract_setting(world_size))"\n', mpirun, "-np", "2")
    worlds = re.findall(r"^tfdeploy-ranks (\d+)", answer.text, re.MULTILINE)
    if worlds == ["2"]:
        return "", ""
    if worlds == ["1", "1"]:
        launcher_is = flavour(ended([mpirun, "--version"]).text)
        return (
            f"{mpirun} ({launcher_is}) starts N copies of one rank: this LAMMPS speaks {flavour(executable.mpi)}",
            f"use the mpirun of {flavour(executable.mpi)}",
        )
    return f"{mpirun} -np 2 failed: {answer.failure or 'no answer'}", f"try '{mpirun} -np 2 {executable.path} -h' by hand"


def flavour(text: str) -> str:
    """Which MPI a text of a library or launcher speaks of."""
    names = [name for name in FLAVOURS if name in text]
    return names[0].replace("HYDRA", "MPICH") if names else text.splitlines()[0][:60] if text.strip() else "unknown"


def _ours(path: str) -> bool:
    return Path(path).parent == Path(sys.executable).parent
