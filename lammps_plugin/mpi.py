"""What the ML-IAP coupling needs of MPI and LAMMPS does not offer there, through the MPI library that LAMMPS has loaded."""

from __future__ import annotations

import ctypes
import os

import torch
from torch import Tensor

_MPICH_WORLD = 0x44000000
"""MPI_COMM_WORLD in MPICH and all that keeps its binary interface; in LAMMPS' own one-process substitute any number will do."""
_MPICH_BYTE = 0x4C00010D
_MOST = (1 << 31) - 1

Handle = ctypes.c_int | ctypes.c_void_p


def world_size() -> int:
    """Processes of this job; 1 where there is no MPI or it has not been started."""
    return _of_world("MPI_Comm_size", 1)


def world_rank() -> int:
    """Which of them this is; 0 where there is no MPI or it has not been started."""
    return _of_world("MPI_Comm_rank", 0)


def _of_world(function: str, otherwise: int) -> int:
    process = ctypes.CDLL(None)
    try:
        initialized, asked = process.MPI_Initialized, process[function]
    except AttributeError:
        return otherwise
    flag, value = ctypes.c_int(0), ctypes.c_int(otherwise)
    initialized(ctypes.byref(flag))
    if flag.value:
        asked(_world(process), ctypes.byref(value))
    return value.value


def abort() -> None:
    """End all processes of the job with exit code 1."""
    process = ctypes.CDLL(None)
    process.MPI_Abort(_world(process), 1)
    os._exit(1)  # it returns where another rank has been faster


class Communicator:
    """The ranks of one LAMMPS; every rank must make the same calls.

    Args:
        library: where the functions of MPI are found.
        number: the communicator as Fortran numbers it.
    """

    def __init__(self, library: ctypes.CDLL, number: int) -> None:
        self._library = library
        open_mpi = _of_open_mpi(library, "ompi_mpi_byte")
        if open_mpi is None:
            self._comm: Handle = ctypes.c_int(number)
            self._byte: Handle = ctypes.c_int(_MPICH_BYTE)
        else:
            library.MPI_Comm_f2c.restype = ctypes.c_void_p
            self._comm, self._byte = ctypes.c_void_p(library.MPI_Comm_f2c(number)), open_mpi
        size, rank = ctypes.c_int(1), ctypes.c_int(0)
        library.MPI_Comm_size(self._comm, ctypes.byref(size))
        library.MPI_Comm_rank(self._comm, ctypes.byref(rank))
        self.size, self.rank = size.value, rank.value

    def everybodys(self, rows: Tensor) -> list[Tensor]:
        """The tensors (n, …) of all ranks, which may differ in n."""
        return self.trade([rows] * self.size)

    def trade(self, pieces: list[Tensor]) -> list[Tensor]:
        """Send the k-th piece (n_k, …) to rank k, and get what each rank has for this one; all of one type and width."""
        width = pieces[0].shape[1:]
        bytes_of_row = pieces[0].element_size() * width.numel()
        out = [len(piece) for piece in pieces]
        back = self._counts(out)
        received = torch.empty((sum(back), *width), dtype=pieces[0].dtype)
        sent = torch.cat(pieces).contiguous()
        if max(len(sent), len(received)) * bytes_of_row > _MOST:
            raise RuntimeError("more than 2 GiB would have to travel between ranks at once; use more ranks")
        there, here = (_counts_and_places(counts, bytes_of_row) for counts in (out, back))
        self._library.MPI_Alltoallv(
            ctypes.c_void_p(sent.data_ptr()),
            *there,
            self._byte,
            ctypes.c_void_p(received.data_ptr()),
            *here,
            self._byte,
            self._comm,
        )
        return list(received.split(back))

    def _counts(self, out: list[int]) -> list[int]:
        sent, received = (ctypes.c_int64 * self.size)(*out), (ctypes.c_int64 * self.size)()
        self._library.MPI_Alltoall(sent, 8, self._byte, received, 8, self._byte, self._comm)
        return list(received)


def _counts_and_places(rows: list[int], bytes_of_row: int) -> tuple[ctypes.Array[ctypes.c_int], ctypes.Array[ctypes.c_int]]:
    counts = [n * bytes_of_row for n in rows]
    places = [sum(counts[:k]) for k in range(len(counts))]
    kind = ctypes.c_int * len(rows)
    return kind(*counts), kind(*places)


def _world(process: ctypes.CDLL) -> Handle:
    return _of_open_mpi(process, "ompi_mpi_comm_world") or ctypes.c_int(_MPICH_WORLD)


def _of_open_mpi(process: ctypes.CDLL, name: str) -> ctypes.c_void_p | None:
    """A predefined handle of Open MPI; None in other libraries."""
    try:
        return ctypes.c_void_p(ctypes.addressof(ctypes.c_byte.in_dll(process, name)))
    except ValueError:
        return None
