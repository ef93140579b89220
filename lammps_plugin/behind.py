"""LAMMPS itself, behind the object through which its ML-IAP coupling calls us.

The coupling hands over neither atom ids nor ranks nor units. All of them stand behind public C functions of the LAMMPS
library, which need the address of the running instance. That address is in reach, and is believed only where the memory
around it looks as nothing else does.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from triforces_deploy.lammps_plugin.mpi import Communicator

INTERFACES = ("mliap_unified_couple.MLIAPUnifiedInterface", "mliap_unified_couple_kokkos.MLIAPUnifiedInterfaceKokkos")
"""The classes of Cython that LAMMPS connects to a potential: Python's header, then addresses of the model, of the descriptor
and of the potential."""

MEMBERS = 14
"""Every class of LAMMPS begins with its table of virtual functions, the address of the instance, and references to this many
members of it, from ``memory`` to ``timer``, with which the instance itself begins: addresses one word apart."""

_COMM = 7  # which of them does the communication
_WORD = ctypes.sizeof(ctypes.c_void_p)


def instance_behind(interface: object) -> int | None:
    """Address of the LAMMPS that connected ``interface``; None where it is not LAMMPS', or not laid out as expected."""
    kind = type(interface)
    if f"{kind.__module__}.{kind.__qualname__}" not in INTERFACES:
        return None
    if kind.__basicsize__ != object.__basicsize__ + 3 * _WORD:
        return None
    model = ctypes.c_size_t.from_address(id(interface) + object.__basicsize__).value
    return instance_in(model) if model else None


def instance_in(address: int) -> int | None:
    """Address of the LAMMPS to which the object of one of its classes at ``address`` belongs; None where it is no such."""
    words = (ctypes.c_size_t * (2 + MEMBERS)).from_address(address)
    instance = words[1]
    references = [instance + k * _WORD for k in range(MEMBERS)]
    return instance if instance and list(words)[2:] == references else None


class Lammps:
    """One running LAMMPS.

    Args:
        library: a library with LAMMPS' C functions.
        instance: address of the instance.
    """

    def __init__(self, library: ctypes.CDLL, instance: int) -> None:
        self._library, self._instance = library, ctypes.c_void_p(instance)
        self._setting, self._global, self._atom = (
            library.lammps_extract_setting,
            library.lammps_extract_global,
            library.lammps_extract_atom,
        )
        self._global.restype = self._atom.restype = ctypes.c_void_p

    @classmethod
    def behind(cls, interface: object) -> Lammps | None:
        """The LAMMPS that connected ``interface``; None where it cannot be reached.

        A program into which LAMMPS is linked statically hides its functions from Python.
        """
        instance = instance_behind(interface)
        try:
            return None if instance is None else cls(ctypes.CDLL(None), instance)
        except AttributeError:
            return None

    def communicator(self) -> Communicator | None:
        """The ranks of this instance; None where it runs alone."""
        if self.setting("world_size") == 1:
            return None
        return Communicator(self._library, self._library.lammps_get_mpi_comm(self._instance))

    def setting(self, name: str) -> int:
        return int(self._setting(self._instance, name.encode()))

    def units(self) -> str:
        address = self._global(self._instance, b"units")
        return ctypes.string_at(address).decode() if address else ""

    def bonds_drop_pairs(self) -> bool:
        """Whether there may be bonds, with weights of zero for bonded neighbours, which takes those out of the list."""
        address = self._global(self._instance, b"special_lj")
        weights = list((ctypes.c_double * 4).from_address(address))[1:] if address else []
        return self.setting("nbondtypes") > 0 and 0.0 in weights

    def ids(self, n_total: int) -> Tensor | None:
        """(N,) int64. Of atoms and ghosts; None where atoms have none."""
        kind = ctypes.c_int32 if self.setting("tagint") == 4 else ctypes.c_int64
        return self._per_atom("id", kind, n_total)

    def types(self, n_total: int) -> Tensor:
        """(N,) int64, from 1."""
        found = self._per_atom("type", ctypes.c_int32, n_total)
        return torch.zeros(n_total, dtype=torch.int64) if found is None else found

    def masses(self) -> list[float]:
        """By type, u or what the units say; zeros where atoms carry their own."""
        n = self.setting("ntypes")
        address = self._atom(self._instance, b"mass")
        return list((ctypes.c_double * (n + 1)).from_address(address))[1:] if address else [0.0] * n

    def ghost_cutoff(self) -> float:
        """Å. How far ghosts reach; infinity where this LAMMPS does not tell."""
        try:
            function = self._library["_ZN9LAMMPS_NS4Comm15get_comm_cutoffEv"]
        except AttributeError:
            return float("inf")
        function.restype = ctypes.c_double
        comm = ctypes.c_void_p.from_address(int(self._instance.value or 0) + _COMM * _WORD)
        return float(function(comm))

    def _per_atom(self, name: str, kind: type[ctypes.c_int32] | type[ctypes.c_int64], n_total: int) -> Tensor | None:
        address = self._atom(self._instance, name.encode())
        if not address:
            return None
        dtype = torch.int32 if kind is ctypes.c_int32 else torch.int64
        if n_total == 0:
            return torch.zeros(0, dtype=torch.int64)
        return torch.frombuffer((kind * n_total).from_address(address), dtype=dtype).to(torch.int64, copy=True)
