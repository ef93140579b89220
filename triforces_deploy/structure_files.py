"""Structures from files, in whatever format ASE reads."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from ase import Atoms

from triforces_deploy.errors import UserError
from triforces_deploy.files import existing

LAMMPS_DATA = (".data", ".lmp")
"""Endings that ASE does not know by itself; the elements follow from the masses."""


def read_structures(path: Path) -> dict[str, Atoms]:
    """All structures of a file, named by their place in it; UserError when there is none or it cannot be read."""
    from ase.io import read

    existing(path, "a file of structures")
    try:
        found = cast(list[Atoms], read(path, index=":", format="lammps-data" if path.suffix in LAMMPS_DATA else None))
    except Exception as error:  # every format of ASE fails in its own way
        raise UserError(
            f"cannot read {path} as structures: {str(error).splitlines()[0] if str(error) else 'no content'}"
        ) from error
    if not found:
        raise UserError(f"{path} holds no structure")
    return {f"{path.name}[{k}]": atoms for k, atoms in enumerate(found)}


def read_structure(path: Path) -> Atoms:
    """The last structure of a file."""
    return list(read_structures(path).values())[-1]
