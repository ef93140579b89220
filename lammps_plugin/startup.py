"""What is checked once before a run, and the block that says what will run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from ase.data import atomic_masses, chemical_symbols

from triforces_deploy.errors import UserError
from triforces_deploy.lammps_plugin.placement import HERE, Placement
from triforces_deploy.potential import Facts, Potential

MASS_TOLERANCE = 0.1
"""Relative. Isotopes and the rounding of tables stay below it; another element does not."""

UNITS = ("metal", "real")
"""LAMMPS' unit styles in which the plugin gives energies; lengths are Å in both."""


@dataclasses.dataclass(frozen=True)
class Shares:
    """How the system is divided between ranks; sizes are the largest of any rank."""

    node_ranks: int
    """Ranks on this machine."""
    owned: int
    """Atoms."""
    rows: int
    """Those and the atoms of other ranks that are seen from here."""
    edges: int
    ghost_rows: tuple[int, int]
    """The least and the most atoms of other ranks that one rank sees."""
    ghosts: tuple[int, int]
    """The least and the most ghosts that LAMMPS communicates, periodic images included."""


@dataclasses.dataclass(frozen=True)
class Run:
    """The side of LAMMPS."""

    units: str
    masses: tuple[float, ...]
    """By atom type; 0 where atoms carry their own masses."""
    numbers: tuple[int, ...]
    """Atomic number by atom type; 0 for types of another pair style."""
    counts: dict[int, int]
    """Atoms of each atomic number in the whole system."""
    ghost_cutoff: float
    """Å."""
    newton: bool
    ranks: int
    bonds_drop_pairs: bool
    exclusions: bool
    loses_ghosts: bool
    """Several ranks share a triclinic box by ``comm_style tiled``."""
    ghost_neighbours: bool
    """``mliap unified FILE 1`` was written."""
    shares: Shares


def check(facts: Facts, run: Run) -> None:
    """Refuse a run whose energies or forces would be wrong.

    Raises:
        UserError: what is wrong and the line of the input that mends it.
    """
    if run.ranks > 1:
        facts.refuse_ranks()
    if run.units not in UNITS:
        raise UserError(f"the potential cannot give energies in units {run.units}; write 'units metal' or 'units real'")
    if not run.newton:
        raise UserError("the potential needs forces on ghost atoms sent home; write 'newton on' before the box is created")
    if run.bonds_drop_pairs:
        raise UserError(
            "special_bonds removes bonded neighbors that the potential must see; write 'special_bonds lj/coul 1 1 1'"
        )
    if run.loses_ghosts:
        # Its own compute coord/atom then counts too few neighbours, from the second rebalancing on in our trial (22Jul2025).
        raise UserError(
            "LAMMPS loses ghost atoms of triclinic boxes with comm_style tiled; write 'comm_style brick', and balance by shift"
        )
    if run.ghost_cutoff < facts.cutoff:
        raise UserError(
            f"ghost cutoff {run.ghost_cutoff:g} A is below the potential's {facts.cutoff:g} A; "
            f"write 'comm_modify cutoff {facts.cutoff + 2:g}'"
        )
    for kind, (number, mass) in enumerate(zip(run.numbers, run.masses, strict=True), start=1):
        other = _mistaken_for(facts, number, mass)
        if other is not None:
            raise UserError(
                f"type {kind} is {chemical_symbols[number]} in pair_coeff but its mass {mass:g} is that of "
                f"{chemical_symbols[other]}; correct the order of the elements or the mass"
            )


def describe(potential: Potential, file: str, run: Run, threads: int, placement: Placement = HERE) -> list[str]:
    """The start-up block, line by line."""
    facts = potential.facts
    types = "type to element:"
    for kind, (number, mass) in enumerate(zip(run.numbers, run.masses, strict=True), start=1):
        types += f"  {kind} = {chemical_symbols[number]} (mass {mass:g})" if number else f"  {kind} = NULL"
    per_rank = f"{threads} torch thread{'s' if threads > 1 else ''}" + (
        f" on each of {run.ranks} ranks" if run.ranks > 1 else ""
    )
    lines = [
        types,
        f"units {run.units}{_conversion(run)}, newton on, cutoff {facts.cutoff:g} A, ghost cutoff {run.ghost_cutoff:g} A",
        f"{facts.precision} on {placement.device}, back end {potential.backend}, {per_rank}",
        f"device: {placement.describe()}",
        f"kernels: {potential.kernels}",
        f"exchange: {_exchange(facts, run)}{_over_host(facts, run, placement)}",
        f"composition: {_composition(facts, run)}",
        *(line.replace("Å", "A") for line in facts.policies if not line.startswith("composition:")),
        *potential.notes,
        *_warnings(run),
    ]
    return [f"TriForces potential {Path(file).name}", *(f"  {line}" for line in lines)]


def _conversion(run: Run) -> str:
    return "" if run.units == "metal" else " (converted from eV)"


def _exchange(facts: Facts, run: Run) -> str:
    if run.ranks == 1:
        return "none, ghosts are folded onto their owners"
    if facts.n_exchanges == 0:
        return "none, the model reads direct neighbors only"
    return f"MPI between {run.ranks} ranks, {facts.n_exchanges} times forward and backward per evaluation"


def _over_host(facts: Facts, run: Run, placement: Placement) -> str:
    if placement.device.type == "cpu" or run.ranks == 1 or facts.n_exchanges == 0:
        return ""
    return ", over pinned host memory (this MPI does not read a GPU's)"


def _composition(facts: Facts, run: Run) -> str:
    present = _formula({chemical_symbols[z]: n for z, n in run.counts.items()})
    if facts.composition == "none":
        return "not read by the model"
    if facts.composition == "frozen":
        return f"frozen at {_formula(facts.reference)} (this system: {present})"
    return f"live, counted over the whole system: {present}"


def _formula(counts: Mapping[str, float]) -> str:
    return " ".join(f"{symbol}{round(n, 4)}" for symbol, n in counts.items()) or "no atoms"


def _warnings(run: Run) -> list[str]:
    lines = []
    for kind, (number, mass) in enumerate(zip(run.numbers, run.masses, strict=True), start=1):
        if number and mass and not _near(mass, number):
            expected = f"{atomic_masses[number]:g}"
            lines.append(f"WARNING: mass {mass:g} of type {kind} is not that of {chemical_symbols[number]} ({expected})")
    if run.exclusions:
        lines.append(
            "WARNING: neigh_modify exclude (also part of fix gcmc) hides neighbors; excluded atoms keep their own energy"
        )
    if run.ghost_neighbours:
        lines.append("the 1 behind 'mliap unified FILE' is not needed: ghosts get their features by exchange")
    return lines


def _near(mass: float, number: int) -> bool:
    return abs(mass / float(atomic_masses[number]) - 1.0) <= MASS_TOLERANCE


def _mistaken_for(facts: Facts, number: int, mass: float) -> int | None:
    """Another element of the model whose mass the type has, where it does not have its own element's."""
    if not number or not mass or _near(mass, number):
        return None
    return next((z for z in facts.element_numbers() if _near(mass, z)), None)
