"""Crystals by name, by prototype or from a file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.data import atomic_numbers, reference_states
from ase.spacegroup import crystal

from triforces_deploy.defects.surroundings import check_cell
from triforces_deploy.errors import UserError
from triforces_deploy.structure_files import read_structure


@dataclasses.dataclass(frozen=True)
class Host:
    """A cubic crystal of four-fold coordinated atoms."""

    elements: tuple[str, ...]
    a: float
    """Å. Edge of the cubic cell of 8 atoms."""
    random: bool = False
    """Elements in equal shares at random instead of one on each sublattice."""


HOSTS = {
    "Si": Host(("Si",), 5.431),
    "Ge": Host(("Ge",), 5.658),
    "SiC": Host(("Si", "C"), 4.360),
    "SiGe": Host(("Si", "Ge"), 5.540),
    "SiGe-random": Host(("Si", "Ge"), 5.540, random=True),
}
"""Name → crystal, with the measured lattice constants; SiC is the cubic polytype 3C."""

ALLOYED = ("fcc", "bcc", "hcp", "diamond", "sc")
"""Structures of one site, on which several elements sit at random."""
CENTRED = (60.0, np.degrees(np.arccos(-1 / 3)))
"""Angles of the primitive cells of fcc and bcc lattices."""
COMPOUNDS = ("zincblende", "rocksalt", "cesiumchloride", "fluorite", "wurtzite")


@dataclasses.dataclass(frozen=True)
class Crystal:
    """What a supercell is made of."""

    name: str
    cell: Atoms
    """What ``--matrix`` multiplies: the conventional cell of a prototype, the cell of a file."""
    primitive: Atoms
    """The smallest cell known; a supercell by size is searched among its multiples."""
    structure: str = ""
    """Of a prototype, such as 'fcc'."""
    shares: Mapping[str, float] | None = None
    """Element → fraction of all atoms, placed at random; None leaves the elements where they are."""


def crystal_of(host: str) -> Crystal:
    """Look a host up, read it from a file, or build it.

    ``FORMULA:STRUCTURE:a:c`` leaves out from the right what is known: 'Cu', 'Fe:bcc', 'GaAs:zincblende:5.653',
    'SrTiO3:perovskite:3.905', 'GaN:wurtzite:3.19:5.19', 'Si0.7Ge0.3:diamond:5.48' (elements at random).

    Raises:
        UserError: neither a name, a file nor a prototype, or one whose lattice constant must be given.
    """
    if host in HOSTS:
        known = HOSTS[host]
        if known.random or len(known.elements) == 1:
            shares = dict.fromkeys(known.elements, 1 / len(known.elements)) if known.random else None
            return Crystal(host, *_prototype(known.elements[:1], "diamond", known.a, None), "diamond", shares)
        return Crystal(host, *_prototype(known.elements, "zincblende", known.a, None), "zincblende")
    if Path(host).is_file():
        return _from_file(Path(host))
    if re.search(r"/|\.[a-zA-Z]\w*$", host):
        raise UserError(f"host '{host}' is no file; expected a structure that ASE reads, or a crystal such as Si or Fe:bcc")
    formula, structure, a, c = (*host.split(":"), "", "", "")[:4]
    shares = _formula(formula, host)
    try:
        return _named(host, shares, structure, *(_length(x, host) for x in (a, c)))
    except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        line = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"host '{host}': {line}; expected FORMULA:STRUCTURE:a such as Fe:bcc:2.87") from error


def _named(host: str, shares: dict[str, float], structure: str, a: float | None, c: float | None) -> Crystal:
    elements = tuple(shares)
    if len(elements) == 1 and structure not in COMPOUNDS:
        structure = structure or str((reference_states[atomic_numbers[elements[0]]] or {}).get("symmetry", ""))
        return Crystal(host, *_prototype(elements, structure or None, a, c), structure)
    if not structure or a is None:
        raise UserError(
            f"host '{host}' is unknown; choose one of {', '.join(HOSTS)}, an element, a file, or FORMULA:STRUCTURE:a, "
            f"such as {''.join(elements) if len(elements) > 1 else 'GaAs'}:zincblende:5.65"
        )
    if structure == "perovskite":
        return Crystal(host, *_perovskite(shares, a, host), structure)
    if structure in ALLOYED:
        total = sum(shares.values())
        fractions = {e: n / total for e, n in shares.items()}
        return Crystal(host, *_prototype(elements[:1], structure, a, c), structure, fractions)
    if structure not in COMPOUNDS:
        raise UserError(f"host '{host}': expected a structure among {', '.join((*ALLOYED, *COMPOUNDS, 'perovskite'))}")
    return Crystal(host, *_prototype(elements, structure, a, c), structure)


def _prototype(elements: Sequence[str], structure: str | None, a: float | None, c: float | None) -> tuple[Atoms, Atoms]:
    """Conventional and primitive cell; what is None comes from ASE's reference data."""
    formula = "".join(elements) if structure != "fluorite" else f"{elements[0]}{elements[1]}2"
    primitive: Atoms = bulk(formula, structure, a=a, c=c)
    shape = primitive.cell.cellpar()
    if np.ptp(shape[:3]) < 1e-6 and any(np.allclose(shape[3:], angle) for angle in CENTRED):
        conventional: Atoms = bulk(formula, structure, a=a, cubic=True)
        return conventional, primitive
    return primitive, primitive


def _perovskite(shares: Mapping[str, float], a: float, host: str) -> tuple[Atoms, Atoms]:
    if list(shares.values()) != [1, 1, 3]:
        raise UserError(f"host '{host}': a perovskite is written ABX3, such as SrTiO3:perovskite:3.905")
    cell: Atoms = crystal(
        list(shares), [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)], spacegroup=221, cellpar=[a, a, a, 90, 90, 90]
    )
    return cell, cell


def _formula(text: str, host: str) -> dict[str, float]:
    """Element → amount, of a formula whose amounts may be fractions."""
    parts = re.findall(r"([A-Z][a-z]?)(\d*\.?\d*)", text)
    shares = {symbol: float(amount or 1) for symbol, amount in parts}
    sound = "".join(a + b for a, b in parts) == text and len(shares) == len(parts)
    if not sound or not shares or any(atomic_numbers.get(e, 0) == 0 for e in shares) or min(shares.values()) <= 0:
        raise UserError(
            f"host '{host}' is unknown; choose one of {', '.join(HOSTS)}, a file, or FORMULA:STRUCTURE:a such as Fe:bcc:2.87"
        )
    return shares


def _length(text: str, host: str) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        value = -1.0
    if value is not None and not 1 < value < 100:
        raise UserError(f"host '{host}': '{text}' is no lattice constant; expected Å, between 1 and 100")
    return value


def _from_file(path: Path) -> Crystal:
    atoms = read_structure(path)
    if any(max(sites.values()) < 1 - 1e-6 for sites in atoms.info.get("occupancy", {}).values()):
        raise UserError(f"{path} holds partly occupied sites; expected one atom on each, e.g. an ordered cell of it")
    try:
        check_cell(atoms)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    plain = Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)
    if plain.cell.handedness != 1:
        raise UserError(f"{path}: the cell vectors are left-handed; exchange two of them")
    return Crystal(path.name, plain, plain)
