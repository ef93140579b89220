"""LAMMPS' own Python coupling, ``pair_style mliap unified FILE``, for those who built LAMMPS with it.

LAMMPS hands over a ``data`` object: numpy arrays in plain builds, numpy or cupy arrays and an exchange of ghost rows in
Kokkos builds. It tells neither atom ids, nor ranks, nor units, nor how many atoms the whole system has; what cannot be
right without them is refused. LAMMPS itself forms the pressure there: its off-diagonal components are Σ x·f_y alone, which
our own pair style makes symmetric; the two differ for models that are not exactly equivariant.
"""

from __future__ import annotations

import traceback
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from triforces_deploy.errors import UserError
from triforces_deploy.graph import N_NUMBERS, Graph
from triforces_deploy.lammps_plugin import mpi
from triforces_deploy.lammps_plugin.exchange_test import self_test
from triforces_deploy.lammps_plugin.mliap_exchange import Exchange, Exchanging
from triforces_deploy.potential import Potential


class Data(Protocol):
    """What is read and written of LAMMPS' object; arrays are numpy's or cupy's and live during one call.

    With N atoms and ghosts, L listed centres, M ≥ L listed atoms (ghosts too with ghostneigh 1) and P directed pairs.
    Where a size is zero the arrays of that length must not be touched.
    """

    ntotal: int
    nlocal: int
    nlistatoms: int
    natomneigh: int
    npairs: int
    elems: Any
    """(N,) int32, index into the elements of the potential; −1 for types of another pair style."""
    iatoms: Any
    """(M,) int32."""
    pair_i: Any
    """(P,) int32, centres."""
    pair_j: Any
    """(P,) int32, neighbours."""
    rij: Any
    """(P, 3) float64, x_j − x_i, Å."""
    energy: float
    """eV; can only be written."""
    eatoms: Any
    """(L,) float64, eV. Plain builds: can only be assigned. Kokkos builds: can only be copied into."""

    def update_pair_forces(self, fij: Any) -> None: ...


class Coupling:
    """Runs a potential on LAMMPS' data objects.

    Raises:
        UserError: the model needs the composition of the whole system, which this coupling cannot know.
    """

    def __init__(self, potential: Potential) -> None:
        facts = potential.facts
        if facts.composition == "live" and len(facts.elements) > 1:
            raise UserError(
                "LAMMPS' ML-IAP coupling does not tell how many atoms of each element the whole system has; freeze the "
                "composition with 'tfdeploy export --composition frozen --structure FILE', or use pair_style triforces"
            )
        self._potential = potential
        self._numbers = torch.tensor(facts.element_numbers(), dtype=torch.int64)
        self._tested = False

    def compute_forces(self, data: Data) -> None:
        """Write energy, per-atom energies and pair forces of one step into ``data``.

        Raises:
            UserError: a model of several layers in a LAMMPS that cannot exchange ghost atoms' features.
        """
        exchanging = isinstance(data, Exchanging)
        if self._potential.facts.n_exchanges and not exchanging:
            raise UserError(
                "this model has several layers and LAMMPS' ML-IAP coupling without Kokkos does not exchange features of "
                "ghost atoms; use pair_style triforces, or a Kokkos build of LAMMPS 22Jul2025 or later"
            )
        try:
            self._compute(data, exchanging)
        except Exception:
            # LAMMPS' own handling waits for the other ranks, which wait for this one in an exchange: end the job instead.
            if mpi.world_size() > 1:
                traceback.print_exc()
                mpi.abort()
            raise

    def _compute(self, data: Data, exchanging: bool) -> None:
        facts = self._potential.facts
        device = _device(data)
        _synchronize(device)
        handler = Exchange(cast(Exchanging, data), device) if exchanging and facts.n_exchanges else None
        if handler is not None and not self._tested:
            _require_right(handler, data)
            self._tested = True
        listed = _listed(data, self._numbers, facts.bidirectional)
        # Communication in the backward pass must stay on the thread that MPI knows.
        with torch.autograd.set_multithreading_enabled(False):
            evaluation = self._potential.evaluate(listed.graph, handler)
        energies = evaluation.energies.to(torch.float64)
        edge_forces = evaluation.edge_forces.to(torch.float64)
        if not bool(torch.isfinite(energies.sum() + edge_forces.sum())):
            raise RuntimeError("the potential gave an energy or force that is not finite; look for atoms on top of each other")
        _write_energies(data, energies, listed.centres, exchanging)
        _write_forces(data, _pair_forces(edge_forces, listed, data.npairs), device)
        _synchronize(device)


def _require_right(handler: Exchange, data: Data) -> None:
    """UserError where LAMMPS' exchange is wrong, as on GPUs in releases between October and December 2025."""
    alone = list if mpi.world_size() == 1 else None  # LAMMPS offers no sum over ranks here
    wrong = self_test(handler, data.nlocal, data.ntotal, wide=False, total=alone)
    if wrong:
        raise UserError(
            f"LAMMPS' exchange of ghost atoms gives wrong features ({wrong}; a known defect of releases from October to "
            "December 2025); use LAMMPS 22Jul2025 or one of 2026, or pair_style triforces"
        )


class _Listed(NamedTuple):
    """LAMMPS' lists as a graph on the CPU, where potentials run; rows are LAMMPS' own indices of atoms and ghosts."""

    graph: Graph
    centres: Tensor
    """(L,) int64. The listed atom of each entry of ``eatoms``."""
    pairs: Tensor
    """(K,) int64. The pair of LAMMPS behind each of the first K edges."""
    mirrored: Tensor
    """(E − K,) int64. Which of those edges each further edge is the mirror image of."""


def _listed(data: Data, element_numbers: Tensor, mirror: bool) -> _Listed:
    n, p, n_listed = data.ntotal, data.npairs, data.nlistatoms
    elements = _host(data.elems if n else None, (n,), torch.int64)
    centres = _host(data.iatoms if n_listed else None, (0,), torch.int64)[:n_listed]
    owned = torch.zeros(n, dtype=torch.bool)
    owned[centres] = True
    centre = _host(data.pair_i if p else None, (p,), torch.int64)
    neighbour = _host(data.pair_j if p else None, (p,), torch.int64)
    # With ghostneigh 1 ghosts are listed as centres too; their own ranks evaluate them.
    pairs = torch.nonzero(owned[centre])[:, 0]
    centre, neighbour = centre[pairs], neighbour[pairs]
    vector = _host(data.rij if p else None, (p, 3), torch.float64)[pairs]
    mirrored = torch.nonzero(~owned[neighbour])[:, 0] if mirror else torch.zeros(0, dtype=torch.int64)
    graph = Graph(
        numbers=element_numbers[elements.clamp(min=0)],  # those of other pair styles have no edges and count for nothing
        edge_index=torch.stack([torch.cat([neighbour, centre[mirrored]]), torch.cat([centre, neighbour[mirrored]])]),
        edge_vector=torch.cat([vector, -vector[mirrored]]),
        batch=torch.zeros(n, dtype=torch.int64),
        owned=owned,
        composition=_pure(element_numbers),
        cell=torch.zeros(1, 3, 3, dtype=torch.float64),
    )
    return _Listed(graph, centres, pairs, mirrored)


def _pure(element_numbers: Tensor) -> Tensor:
    """The composition of a one-element system, whose size does not matter; not read where there are several elements."""
    composition = torch.zeros(1, N_NUMBERS, dtype=torch.float64)
    composition[0, element_numbers[0]] = 1.0
    return composition


def _pair_forces(edge_forces: Tensor, listed: _Listed, n_pairs: int) -> Tensor:
    """(P, 3) contiguous; a mirror image counts as minus its original."""
    kept = len(listed.pairs)
    folded = edge_forces[:kept].clone()
    folded[listed.mirrored] -= edge_forces[kept:]
    return torch.zeros(n_pairs, 3, dtype=torch.float64).index_copy(0, listed.pairs, folded)


def _write_energies(data: Data, energies: Tensor, centres: Tensor, kokkos: bool) -> None:
    # Always, also for no atoms: LAMMPS keeps what stood there at the last step.
    data.energy = float(energies.sum())
    if len(centres) == 0:
        return
    if kokkos:
        torch.as_tensor(data.eatoms).copy_(energies[centres])
    else:
        data.eatoms = energies[centres].numpy()


def _write_forces(data: Data, pair_forces: Tensor, device: torch.device) -> None:
    if len(pair_forces) == 0:
        return
    if device.type == "cuda":
        # Takes a bare address and checks nothing: contiguous float64 on LAMMPS' own device.
        cast(Exchanging, data).update_pair_forces_gpu(pair_forces.to(device))
    else:
        data.update_pair_forces(pair_forces.numpy())


def _host(array: Any, shape: tuple[int, ...], kind: torch.dtype) -> Tensor:
    """LAMMPS' array, or zeros of ``shape`` where there is none, as a tensor on the CPU."""
    return torch.zeros(shape, dtype=kind) if array is None else torch.as_tensor(array).to("cpu", kind)


def _device(data: Data) -> torch.device:
    return torch.as_tensor(data.elems).device if data.ntotal else torch.device("cpu")


def _synchronize(device: torch.device) -> None:
    """LAMMPS and torch may use different streams of one device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
