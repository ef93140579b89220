"""What is checked and shown once where LAMMPS' own ML-IAP coupling calls us."""

from __future__ import annotations

import platform
import zlib

import torch
from ase.data import atomic_masses, atomic_numbers
from torch import Tensor

from triforces_deploy.errors import UserError
from triforces_deploy.exchange import Handler
from triforces_deploy.lammps_plugin import mpi, placement
from triforces_deploy.lammps_plugin.behind import Lammps
from triforces_deploy.lammps_plugin.mliap_exchange import Exchange
from triforces_deploy.lammps_plugin.startup import MASS_TOLERANCE
from triforces_deploy.potential import Facts, Potential


def start(potential: Potential, lammps: Lammps | None, elements: Tensor, handler: Handler | None, device: torch.device) -> None:
    """Refuse a run whose energies or forces would be wrong, and say on the first rank what will run.

    Args:
        potential: what runs.
        lammps: None where it cannot be reached; units and masses are then the user's care.
        elements: (n_local,) int64, index into the elements of the potential; −1 for other styles' atoms.
        handler: what moves features between ranks.
        device: where LAMMPS keeps its arrays, and the potential runs.

    Raises:
        UserError: units, masses or special bonds that would make the result wrong.
    """
    if lammps is not None:
        _check(potential.facts, lammps, elements.cpu())
    if (mpi.world_rank() if lammps is None else lammps.setting("world_rank")) == 0:
        print("\n".join(_lines(potential, lammps, handler, device)), flush=True)


def share_memory(potential: Potential, lammps: Lammps | None) -> None:
    """Divide the memory of each machine between its ranks, which then agree on what fits; all of them must call.

    Ranks that cannot be asked take what there is, each for itself.
    """
    ranks = None if lammps is None else lammps.communicator()
    if ranks is None:
        return
    machine = zlib.crc32(platform.node().encode())
    here = torch.cat(ranks.everybodys(torch.tensor([machine]))).eq(machine).sum()

    def agree(holds: bool) -> bool:
        return bool(torch.cat(ranks.everybodys(torch.tensor([holds]))).all())

    potential.memory.share(int(here), agree if potential.facts.n_exchanges else bool)


def _check(facts: Facts, lammps: Lammps, elements: Tensor) -> None:
    if lammps.units() != facts.units:
        raise UserError(
            f"the potential is in units {facts.units} but the run is in {lammps.units()}; write 'units {facts.units}', or use "
            "pair_style triforces, which converts"
        )
    if lammps.bonds_drop_pairs():
        raise UserError(
            "special_bonds removes bonded neighbors that the potential must see; write 'special_bonds lj/coul 1 1 1'"
        )
    masses, types = lammps.masses(), lammps.types(len(elements))
    for kind in types.unique().tolist():
        element = int(elements[types == kind][0])
        others = [s for k, s in enumerate(facts.elements) if k != element and _near(masses[kind - 1], s)]
        if element >= 0 and others and not _near(masses[kind - 1], facts.elements[element]):
            raise UserError(
                f"type {kind} is {facts.elements[element]} in pair_coeff but its mass {masses[kind - 1]:g} is that of "
                f"{others[0]}; correct the order of the elements or the mass"
            )


def _near(mass: float, symbol: str) -> bool:
    return abs(mass / float(atomic_masses[atomic_numbers[symbol]]) - 1.0) <= MASS_TOLERANCE


def _lines(potential: Potential, lammps: Lammps | None, handler: Handler | None, device: torch.device) -> list[str]:
    facts, threads = potential.facts, torch.get_num_threads()
    unknown = f"NOT CHECKED (LAMMPS' library is out of reach): units {facts.units}, masses, special_bonds; see to them yourself"
    return [
        "TriForces potential in LAMMPS' own ML-IAP coupling",
        f"  {facts.precision} on {device}, back end {potential.backend}, {threads} torch thread{'s'[: threads > 1]}",
        f"  device: {device}, where LAMMPS keeps its lists{placement.overruled(device)}",
        f"  kernels: {potential.kernels}",
        f"  cutoff {facts.cutoff:g} A",
        f"  exchange: {_exchange(facts, lammps, handler, device)}",
        *(f"  {line.replace('Å', 'A')}" for line in (*facts.policies, *potential.notes)),
        f"  {unknown if lammps is None else f'units {lammps.units()}, masses and special_bonds checked'}",
    ]


def _exchange(facts: Facts, lammps: Lammps | None, handler: Handler | None, device: torch.device) -> str:
    if not facts.n_exchanges:
        return "none, the model reads direct neighbors only"
    times = f"{facts.n_exchanges} times forward and backward per evaluation"
    if handler is None:
        return "none, ghosts are folded onto their owners"
    if not isinstance(handler, Exchange):
        return f"by atom id between {lammps.setting('world_size') if lammps else '?'} ranks, {times}"
    if device.type == "cpu":
        return f"LAMMPS' own, three columns at once, {times}"
    flags = "-pk kokkos newton on neigh half gpu/aware on comm/pair/forward device comm/pair/reverse device"
    return f"LAMMPS' own on the GPU, {times}; should several ranks crash here, MPI is not GPU-aware or lacks the flags {flags}"
