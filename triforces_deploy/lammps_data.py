"""Structures of any size as text files for LAMMPS and ASE, written in pieces: no Python object per atom stays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.cell import Cell
from ase.data import atomic_masses, atomic_numbers, chemical_symbols
from numpy.typing import NDArray

PIECE = 65_536
"""Atoms turned into text at a time."""


def upright(atoms: Atoms) -> Atoms:
    """The same structure turned so that its cell is lower triangular, as LAMMPS wants it, every atom inside.

    Of a left-handed cell the first two vectors change places.
    """
    vectors = atoms.cell if atoms.cell.handedness == 1 else Cell(atoms.cell.array[[1, 0, 2]])
    cell, turn = vectors.standard_form()
    fractional = np.linalg.solve(cell.array.T, turn @ atoms.positions.T).T
    fractional -= np.floor(fractional)
    fractional[fractional >= 1] = 0  # a negative number of the size of the rounding becomes 1
    out = Atoms(numbers=atoms.numbers, positions=fractional @ cell.array, cell=cell, pbc=atoms.pbc)
    out.info = dict(atoms.info)
    return out


def write_lammps_data(path: Path, atoms: Atoms, elements: Sequence[str]) -> None:
    """Write a data file of ``atom_style atomic``, units metal, with masses.

    Args:
        path: overwritten.
        atoms: as :func:`upright` returns them.
        elements: symbols in the order of LAMMPS' atom types, every element of the atoms among them.
    """
    (lx, _, _), (xy, ly, _), (xz, yz, lz) = atoms.cell.array.tolist()
    types = np.zeros(len(chemical_symbols), dtype=np.int64)
    numbers = [atomic_numbers[e] for e in elements]
    types[numbers] = np.arange(1, len(elements) + 1)
    with path.open("w", encoding="utf-8") as stream:
        stream.write(f"# {len(atoms)} atoms, {' '.join(elements)}, made by tfdeploy\n\n")
        stream.write(f"{len(atoms)} atoms\n{len(elements)} atom types\n\n")
        stream.writelines(f"0.0 {length!r} {axis}lo {axis}hi\n" for axis, length in zip("xyz", (lx, ly, lz), strict=True))
        if xy or xz or yz:
            stream.write(f"{xy!r} {xz!r} {yz!r} xy xz yz\n")
        stream.write("\nMasses\n\n")
        stream.writelines(
            f"{k} {atomic_masses[n]:.10g} # {e}\n" for k, (n, e) in enumerate(zip(numbers, elements, strict=True), 1)
        )
        stream.write("\nAtoms # atomic\n\n")
        ids = np.arange(1, len(atoms) + 1)
        stream.writelines(_rows("%d %d %.16g %.16g %.16g\n", ids, types[atoms.numbers], *atoms.positions.T))


def write_extxyz(path: Path, atoms: Atoms) -> None:
    """Write one frame of extended XYZ, positions to 1e-8 Å; the text and numbers in ``info`` go along."""
    info = {k: v for k, v in atoms.info.items() if isinstance(v, str | int)}
    lattice = " ".join(repr(x) for x in atoms.cell.array.ravel().tolist())
    words = [f'Lattice="{lattice}"', "Properties=species:S:1:pos:R:3", 'pbc="T T T"']
    words += [f'{k}="{v}"' if isinstance(v, str) else f"{k}={v}" for k, v in info.items()]
    symbols = np.array(chemical_symbols, dtype=object)
    with path.open("w", encoding="utf-8") as stream:
        stream.write(f"{len(atoms)}\n{' '.join(words)}\n")
        stream.writelines(_rows("%-2s %.8f %.8f %.8f\n", symbols[atoms.numbers], *atoms.positions.T))


def _rows(template: str, *columns: NDArray[np.generic]) -> Iterator[str]:
    """Lines of columns (N,) through a %-template, ``PIECE`` at a time."""
    for start in range(0, len(columns[0]), PIECE):
        piece = zip(*(column[start : start + PIECE].tolist() for column in columns), strict=True)
        yield "".join(map(template.__mod__, piece))
