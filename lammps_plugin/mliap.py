"""LAMMPS' own Python coupling, ``pair_style mliap unified FILE``, for those who built LAMMPS with it.

LAMMPS hands over a ``data`` object: numpy arrays in plain builds, numpy or cupy arrays and an exchange of ghost rows in
Kokkos builds. Atom ids, ranks and units come from the LAMMPS behind it where that is in reach; what cannot be right without
them is refused. LAMMPS itself forms the pressure there: its off-diagonal components are Σ x·f_y alone, which our own pair
style makes symmetric; the two differ for models that are not exactly equivariant.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from triforces_deploy.errors import UserError
from triforces_deploy.exchange import Handler
from triforces_deploy.graph import N_NUMBERS, Graph
from triforces_deploy.lammps_plugin import mliap_start, mpi
from triforces_deploy.lammps_plugin.behind import Lammps
from triforces_deploy.lammps_plugin.exchange_test import Sum, self_test
from triforces_deploy.lammps_plugin.mliap_exchange import Exchange, Exchanging
from triforces_deploy.lammps_plugin.mliap_lists import Data, Edges, Lists, device_of, edges_of, pair_forces_of, read
from triforces_deploy.lammps_plugin.mliap_rows import IdExchange, Rows, by_ids, one_each
from triforces_deploy.potential import Potential

ON_ITS_WAY = 0.3
"""Seconds in which a message passes through mpirun; the end of the job would overtake it."""


class Coupling:
    """Runs a potential on LAMMPS' data objects, on the device where those are.

    Args:
        opened: device → what runs there; called at the first evaluation, and again should LAMMPS move.
    """

    def __init__(self, opened: Callable[[torch.device], Potential]) -> None:
        self._opened = opened
        self._potential: Potential
        self._numbers: Tensor
        self._place: torch.device | None = None  # none opened yet
        self._lammps: Lammps | None = None
        self._connected: object = self  # to nobody yet

    def compute_forces(self, data: Data, interface: object = None) -> None:
        """Write energy, per-atom energies and pair forces of one step into ``data``.

        Args:
            data: one call's.
            interface: LAMMPS' own object that calls, a new one for each pair style, through which more of LAMMPS is found.

        Raises:
            UserError: a model of several layers, or one that reads the composition, where LAMMPS does not let it know of
                other ranks; units, masses or ids that are not the potential's.
        """
        try:
            self._compute(data, interface)
        except Exception as error:
            if isinstance(error, UserError):
                _say_it_in_one_line()
            if mpi.world_size() > 1:
                # LAMMPS' own handling waits for the other ranks, which may wait for this one: end the job instead.
                if mpi.world_rank() > 0:
                    time.sleep(2 * ON_ITS_WAY)  # where all ranks fail alike, the first one's message will do
                sys.excepthook(type(error), error, error.__traceback__)
                sys.stderr.flush()
                time.sleep(ON_ITS_WAY)
                mpi.abort()
            raise

    def _compute(self, data: Data, interface: object) -> None:
        starts = interface is not self._connected
        if starts:
            self._lammps = Lammps.behind(interface)
        on_gpu = _on_gpu(data, self._lammps)
        device = device_of(data, on_gpu)
        if device != self._place:
            self._potential, self._place = self._opened(device), device
            self._numbers = torch.tensor(self._potential.facts.element_numbers(), dtype=torch.int64)
        _synchronize(device)
        lists = read(data, device)
        rows, handler = self._rows(data, lists, on_gpu)
        if starts:
            mliap_start.start(self._potential, self._lammps, lists.elements[: data.nlocal], handler, device)
            mliap_start.share_memory(self._potential, self._lammps)
            if isinstance(handler, Exchange):
                _require_right(handler, data.nlocal, data.ntotal, list if mpi.world_size() == 1 else None)
            elif handler is not None:
                _require_right(handler, data.nlistatoms, len(rows.owned), self._sum)
            self._connected = interface
        edges = edges_of(lists, rows, mirror=self._potential.facts.bidirectional)
        # Communication in the backward pass must stay on the thread that MPI knows.
        with torch.autograd.set_multithreading_enabled(False):
            evaluation = self._potential.evaluate(self._graph(lists, rows, edges), handler)
        energies = evaluation.energies.to(device, torch.float64)
        edge_forces = evaluation.edge_forces.to(device, torch.float64)
        if not bool(torch.isfinite(energies.sum() + edge_forces.sum())):
            raise RuntimeError("the potential gave an energy or force that is not finite; look for atoms on top of each other")
        _write_energies(data, energies[rows.centres])
        _write_forces(data, pair_forces_of(edge_forces, edges, data.npairs), on_gpu)
        _synchronize(device)

    def _rows(self, data: Data, lists: Lists, on_gpu: bool) -> tuple[Rows, Handler | None]:
        """Rows, and what moves them between ranks where the model needs that.

        Ids are LAMMPS' on the host, which need not be up to date where it computes on a GPU.
        """
        layers = self._potential.facts.n_exchanges
        if self._lammps is not None and not on_gpu:
            ids = self._lammps.ids(data.ntotal)
            if ids is not None:
                ranks = self._lammps.communicator()
                rows = by_ids(ids, lists.elements, lists.listed, data.nlocal)
                own = len(lists.listed)
                return rows, IdExchange(ranks, ids[rows.atom[:own]], ids[rows.atom[own:]]) if ranks and layers else None
        rows = one_each(data.ntotal, lists.listed)
        if not layers:
            return rows, None
        if not isinstance(data, Exchanging):
            raise UserError(
                "this model has several layers, and this LAMMPS neither exchanges features of ghost atoms nor tells their ids; "
                "build it with BUILD_SHARED_LIBS=on and give atoms ids, or build it with KOKKOS, or use pair_style triforces"
            )
        return rows, Exchange(cast(Exchanging, data), lists.device, whole=on_gpu)

    def _sum(self, numbers: Sequence[float]) -> list[float]:
        """Of these numbers over all ranks."""
        mine = torch.tensor([list(numbers)], dtype=torch.float64)
        ranks = None if self._lammps is None else self._lammps.communicator()
        theirs = [mine] if ranks is None else ranks.everybodys(mine)
        return cast(list[float], torch.cat(theirs).sum(0).tolist())

    def _graph(self, lists: Lists, rows: Rows, edges: Edges) -> Graph:
        elements = lists.elements[rows.atom].clamp(min=0)  # those of other pair styles have no edges and count for nothing
        return Graph(
            numbers=self._numbers.to(lists.device)[elements],
            edge_index=edges.ends,
            edge_vector=edges.vector,
            batch=torch.zeros_like(elements),
            owned=rows.owned,
            composition=self._composition(lists.elements[lists.listed].cpu()).to(lists.device),
            cell=torch.zeros(1, 3, 3, dtype=torch.float64, device=lists.device),
        )

    def _composition(self, own: Tensor) -> Tensor:
        """(1, 119) float64. Counts of the whole system, from the elements (L,) of this rank's atoms."""
        facts = self._potential.facts
        counts = torch.zeros(1, N_NUMBERS, dtype=torch.float64)
        if facts.composition != "live" or len(facts.elements) == 1:
            counts[0, self._numbers[0]] = 1.0  # not read, or the same for any number of atoms
            return counts
        counts[0, self._numbers] = torch.bincount(own, minlength=len(self._numbers)).to(torch.float64)
        if self._lammps is not None:
            return torch.tensor([self._sum(counts[0].tolist())], dtype=torch.float64)
        if mpi.world_size() > 1:
            raise UserError(
                "this LAMMPS does not tell how many atoms of each element other ranks have; freeze the composition with "
                "'tfdeploy export --composition frozen --structure FILE', or use pair_style triforces"
            )
        return counts


def _require_right(handler: Handler, n_owned: int, n_rows: int, total: Sum | None) -> None:
    """UserError where the exchange is wrong, as LAMMPS' on GPUs in releases between October and December 2025."""
    wrong = self_test(handler, n_owned, n_rows, wide=False, total=total)
    if wrong:
        raise UserError(
            f"LAMMPS' exchange of ghost atoms gives wrong features ({wrong}; a known defect of releases from October to "
            "December 2025); use LAMMPS 22Jul2025 or one of 2026, or pair_style triforces"
        )


def _write_energies(data: Data, energies: Tensor) -> None:
    # Always, also for no atoms: LAMMPS keeps what stood there at the last step.
    data.energy = float(energies.sum())
    if len(energies) == 0:
        return
    if isinstance(data, Exchanging):
        torch.as_tensor(data.eatoms).copy_(energies)
    else:
        data.eatoms = energies.numpy()


def _write_forces(data: Data, pair_forces: Tensor, on_gpu: bool) -> None:
    if len(pair_forces) == 0:
        return
    if on_gpu:
        # Takes a bare address and checks nothing: contiguous float64 on LAMMPS' own device, and complete.
        _synchronize(pair_forces.device)
        cast(Exchanging, data).update_pair_forces_gpu(pair_forces)
    else:
        data.update_pair_forces(pair_forces.numpy())


def _on_gpu(data: Data, lammps: Lammps | None) -> bool:
    """Whether LAMMPS' arrays are cupy's; asked of LAMMPS itself where there are no atoms, because ranks must agree."""
    if not isinstance(data, Exchanging):
        return False
    if data.ntotal:
        return not isinstance(data.elems, np.ndarray)
    return lammps is not None and lammps.setting("kokkos_ngpus") > 0


def _synchronize(device: torch.device) -> None:
    """LAMMPS and torch may use different streams of one device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _say_it_in_one_line() -> None:
    """Let the next error that is printed, which LAMMPS does at once, be its message alone."""
    usual = sys.excepthook

    def once(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        sys.excepthook = usual
        if isinstance(error, UserError):
            print(f"ERROR: {error}", file=sys.stderr, flush=True)
        else:
            usual(kind, error, trace)

    sys.excepthook = once
