"""Python's half of the pair style: a mirror of ``src/abi.h`` and the functions that LAMMPS calls through it.

No exception crosses the border: a function that fails leaves one message behind and says so.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
import traceback
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_double, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch

from triforces_deploy.allocator import keep_freed_memory
from triforces_deploy.errors import UserError
from triforces_deploy.graph import N_NUMBERS
from triforces_deploy.lammps_plugin import placement
from triforces_deploy.lammps_plugin.halo import Halo
from triforces_deploy.lammps_plugin.session import Session, StepLike
from triforces_deploy.lammps_plugin.skin import Frame
from triforces_deploy.lammps_plugin.startup import Run, Shares
from triforces_deploy.neighbours import OVERLAP

ABI = 2
TEXT = 16384
OK, FAILED, BROKEN = 0, 1, 2


class FactsStruct(Structure):
    """``tf_facts``."""

    _fields_ = (
        ("cutoff", c_double),
        ("overlap", c_double),
        ("bidirectional", c_int32),
        ("exchanges", c_int32),
        ("by_positions", c_int32),
        ("uncertainty", c_int32),
    )


class RunStruct(Structure):
    """``tf_run``."""

    _fields_ = (
        ("units", c_char_p),
        ("mass", POINTER(c_double)),
        ("numbers", POINTER(c_int32)),
        ("counts", POINTER(c_int64)),
        ("ghost_cutoff", c_double),
        ("types", c_int32),
        ("newton", c_int32),
        ("ranks", c_int32),
        ("bonds_drop_pairs", c_int32),
        ("exclusions", c_int32),
        ("loses_ghosts", c_int32),
        ("ghost_neighbours", c_int32),
        ("node_ranks", c_int32),
        ("owned", c_int64),
        ("rows", c_int64),
        ("edges", c_int64),
        ("ghost_rows_min", c_int64),
        ("ghost_rows_max", c_int64),
        ("ghosts_min", c_int64),
        ("ghosts_max", c_int64),
    )


class StepStruct(Structure):
    """``tf_step``; addresses are plain numbers here, None for a null pointer."""

    _fields_ = (
        ("rows", c_int64),
        ("owned", c_int64),
        ("edges", c_int64),
        ("numbers", c_void_p),
        ("edge_index", c_void_p),
        ("edge_vector", c_void_p),
        ("counts", c_void_p),
        ("energies", c_void_p),
        ("edge_forces", c_void_p),
        ("uncertainty", c_void_p),
        ("moved", c_int64),
    )


class FrameStruct(Structure):
    """``tf_frame``."""

    _fields_ = (
        ("atoms", c_int64),
        ("rows", c_int64),
        ("owned", c_int64),
        ("centres", c_int64),
        ("pairs", c_int64),
        ("positions", c_void_p),
        ("numbers", c_void_p),
        ("counts", c_void_p),
        ("row", c_void_p),
        ("centre", c_void_p),
        ("first", c_void_p),
        ("neighbour", c_void_p),
        ("new_list", c_int32),
        ("new_numbers", c_int32),
        ("atom_virials", c_int32),
        ("shortest", c_double),
        ("energies", c_void_p),
        ("forces", c_void_p),
        ("virial", c_void_p),
        ("uncertainty", c_void_p),
        ("atom_virial", c_void_p),
    )


_Exchange = CFUNCTYPE(c_int32, c_void_p, c_int32, c_int32, c_int64, c_void_p)
_Sum = CFUNCTYPE(c_int32, c_void_p, c_int64, c_void_p)
_Open = CFUNCTYPE(c_int32, c_char_p, c_void_p, c_int32, c_int32, POINTER(c_int64), POINTER(FactsStruct))
_Map = CFUNCTYPE(c_int32, c_int64, c_char_p, POINTER(c_int32))
_Start = CFUNCTYPE(c_int32, c_int64, POINTER(RunStruct), c_void_p)
_Test = CFUNCTYPE(c_int32, c_int64, POINTER(StepStruct), c_void_p)
_Compute = CFUNCTYPE(c_int32, c_int64, POINTER(StepStruct))
_Move = CFUNCTYPE(c_int32, c_int64, POINTER(FrameStruct))
_Close = CFUNCTYPE(None, c_int64)


class TableStruct(Structure):
    """``tf_table``."""

    _fields_ = (
        ("abi", c_int32),
        ("error", c_void_p),
        ("exchange", _Exchange),
        ("sum", _Sum),
        ("open", _Open),
        ("map", _Map),
        ("start", _Start),
        ("test", _Test),
        ("compute", _Compute),
        ("move", _Move),
        ("close", _Close),
    )


class Bridge:
    """The functions of one table; LAMMPS has one table per process and one session per pair style."""

    def __init__(self, table: TableStruct) -> None:
        self._table = table
        self._sessions: dict[int, Session] = {}
        self._numbers = itertools.count()

    def open(self, file: bytes, pair: int, threads: int, local_rank: int, number: Any, facts: Any) -> None:
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(threads)
        path = os.fsdecode(file)
        potential, place = placement.load(Path(path), placement.choose(local_rank))
        session = Session(potential, path, Halo(self._table.exchange, self._table.sum, pair), place)
        number[0] = next(self._numbers)
        self._sessions[number[0]] = session
        its = session.potential.facts
        facts[0] = FactsStruct(
            its.cutoff, OVERLAP, its.bidirectional, its.n_exchanges, place.by_positions, potential.has_uncertainty
        )

    def map(self, number: int, names: bytes, numbers: Any) -> None:
        for kind, atomic_number in enumerate(self._sessions[number].map(names.decode().split()), start=1):
            numbers[kind] = atomic_number

    def start(self, number: int, run: Any, text: int) -> None:
        _write(text, self._sessions[number].start(_run(run[0])))

    def test(self, number: int, step: Any, ids: int | None) -> None:
        here: StepLike = step[0]
        self._sessions[number].test(here, ids)

    def compute(self, number: int, step: Any) -> None:
        here: StepLike = step[0]
        self._sessions[number].compute(here)

    def move(self, number: int, frame: Any) -> None:
        here: Frame = frame[0]
        self._sessions[number].move(here)

    def close(self, number: int) -> None:
        self._sessions.pop(number, None)


_bridges: list[Bridge] = []
"""Keeps the callbacks alive: LAMMPS holds nothing but their addresses."""


def attach(address: int) -> None:
    """Fill in the table at ``address``; called once by the C++ side."""
    table = TableStruct.from_address(address)
    if table.abi != ABI:
        raise RuntimeError(f"the plugin speaks version {table.abi} of the border, this package {ABI}; rebuild the plugin")
    keep_freed_memory()
    bridge = Bridge(table)
    table.map = _Map(_guarded(bridge.map, table))
    table.start = _Start(_guarded(bridge.start, table))
    table.test = _Test(_guarded(bridge.test, table))
    table.compute = _Compute(_guarded(bridge.compute, table))
    table.move = _Move(_guarded(bridge.move, table))
    table.close = _Close(bridge.close)
    table.open = _Open(_guarded(bridge.open, table))
    _bridges.append(bridge)


def _guarded(function: Callable[..., None], table: TableStruct) -> Callable[..., int]:
    """Turn exceptions into a status and a message: one line for a user's mistake, the traceback for a defect."""

    def call(*arguments: Any) -> int:
        try:
            function(*arguments)
        except UserError as error:
            _write(table.error, str(error))
            return FAILED
        except BaseException as error:  # also SystemExit: it must not end one rank quietly
            _write(table.error, f"Python failed: {type(error).__name__}: {error}\n{traceback.format_exc()}")
            return BROKEN
        finally:
            # The lmp program never ends Python in an orderly way, which is when it would print what is left.
            sys.stdout.flush()
            sys.stderr.flush()
        return OK

    return call


def _write(address: int, text: str) -> None:
    """Put text into a buffer of TEXT bytes, cut where it is too long."""
    content = text.encode()[: TEXT - 1] + b"\0"
    ctypes.memmove(address, content, len(content))


def _run(struct: Any) -> Run:
    return Run(
        units=struct.units.decode(),
        masses=tuple(struct.mass[1 : struct.types + 1]),
        numbers=tuple(struct.numbers[1 : struct.types + 1]),
        counts={z: struct.counts[z] for z in range(N_NUMBERS) if struct.counts[z]},
        ghost_cutoff=struct.ghost_cutoff,
        newton=bool(struct.newton),
        ranks=struct.ranks,
        bonds_drop_pairs=bool(struct.bonds_drop_pairs),
        exclusions=bool(struct.exclusions),
        loses_ghosts=bool(struct.loses_ghosts),
        ghost_neighbours=bool(struct.ghost_neighbours),
        shares=Shares(
            node_ranks=struct.node_ranks,
            owned=struct.owned,
            rows=struct.rows,
            edges=struct.edges,
            ghost_rows=(struct.ghost_rows_min, struct.ghost_rows_max),
            ghosts=(struct.ghosts_min, struct.ghosts_max),
        ),
    )
