"""The two things of MPI that the ML-IAP coupling needs and LAMMPS does not offer there."""

from __future__ import annotations

import ctypes

_MPICH_WORLD = 0x44000000
"""MPI_COMM_WORLD in MPICH and all that keeps its binary interface; in LAMMPS' own one-process substitute any number will do."""


def world_size() -> int:
    """Processes of this job; 1 where there is no MPI or it has not been started."""
    process = ctypes.CDLL(None)
    try:
        initialized, size_of = process.MPI_Initialized, process.MPI_Comm_size
    except AttributeError:
        return 1
    flag, size = ctypes.c_int(0), ctypes.c_int(1)
    initialized(ctypes.byref(flag))
    if flag.value:
        size_of(_world(process), ctypes.byref(size))
    return size.value


def abort() -> None:
    """End all processes of the job with exit code 1."""
    process = ctypes.CDLL(None)
    process.MPI_Abort(_world(process), 1)


def _world(process: ctypes.CDLL) -> ctypes.c_int | ctypes.c_void_p:
    try:
        return ctypes.c_void_p(ctypes.addressof(ctypes.c_byte.in_dll(process, "ompi_mpi_comm_world")))
    except ValueError:  # not Open MPI
        return ctypes.c_int(_MPICH_WORLD)
