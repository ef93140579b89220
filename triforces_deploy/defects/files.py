"""What `tfdeploy defect` leaves behind, and what it says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers
from rich.table import Table

from triforces_deploy import pictures
from triforces_deploy.defects.building import Supercell, composition
from triforces_deploy.files import replacing
from triforces_deploy.lammps_case import Schedule, write_case

LABELS = 8
"""Kinds of defect with a colour of their own in the picture."""


def write_supercell(built: Supercell, elements: Sequence[str] | None, model: str, folder: Path, schedule: Schedule) -> Path:
    """Write the case of :func:`triforces_deploy.lammps_case.write_case`, ``defects.json`` and ``defects.png``.

    Args:
        built: the supercell.
        elements: symbols in the order of the model; None takes those of the supercell by atomic number.
        model: the artifact, as the input names it.
        folder: made when it is not there.
        schedule: of the input.

    Returns:
        The path of the input.
    """
    own = sorted(composition(built.atoms), key=lambda e: atomic_numbers[e])
    written = write_case(built.atoms, elements or own, model, folder, schedule)
    with replacing(folder / "defects.json") as part, part.open("w", encoding="utf-8") as stream:
        json.dump(built.record(), stream, indent=None if len(built.edits) > 1000 else 1)
    centres: dict[str, list[np.ndarray]] = {}
    for edit in built.edits:
        label = edit.label if edit.label in centres or len(centres) < LABELS - 1 else "others"
        centres.setdefault(label, []).append(edit.centre)
    title = f"{built.atoms.info['host']}, {len(built.atoms)} atoms"
    points = {label: np.array(c) for label, c in centres.items()}
    pictures.placed(points, built.atoms.cell.array, title, folder / "defects.png")
    return written


def supercell_table(built: Supercell, written: Path) -> Table:
    """What was asked and what was made."""
    table = Table(title=f"{written}: {len(built.atoms):,} atoms", title_justify="left")
    for heading in ("asked", "defect", "made"):
        table.add_column(heading, justify="right" if heading == "made" else "left")
    table.add_row(str(built.atoms.info["host"]), built.extended or "perfect crystal", f"{built.perfect:,} atoms")
    for made in built.made:
        table.add_row(made.asked, made.defect, f"{made.made:,}")
    lengths = " × ".join(f"{x:.1f}" for x in built.atoms.cell.lengths())
    shares = ", ".join(f"{n:,} {e}" for e, n in composition(built.atoms).items())
    table.add_row("", f"{lengths} Å", shares)
    table.caption = f"Run it: cd {written.parent} && lmp -in {written.name}"
    return table
