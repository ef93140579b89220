"""QM9 and MD17 in the files that torch-geometric downloads; its package is not needed to read them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from ase import Atoms

from .base import Record, labelled

PROPERTIES = (
    "mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "U0", "U", "H", "G", "Cv", "U0_atom", "U_atom", "H_atom", "G_atom",
    "A", "B", "C",
)  # fmt: skip
"""Columns of QM9's ``y``: eV, but mu D, alpha Bohr³, r2 Bohr², Cv cal/(mol K), and A, B, C GHz."""

SEGMENT = 1000
"""Frames of a simulation that go to one part of a split together; the file is one trajectory, which could not be split."""


def qm9(path: Path) -> Iterator[Record]:
    """``qm9_v3.pt``, a list of dictionaries of tensors; loaded whole, 130,000 molecules are 0.5 GB."""
    for molecule in torch.load(path, map_location="cpu", weights_only=True):
        targets = dict(zip(PROPERTIES, molecule["y"].flatten().tolist(), strict=True))
        atoms = Atoms(molecule["z"].numpy(), molecule["pos"].double().numpy())
        yield Record(labelled(atoms, energy=targets["U0"]), str(molecule.get("name") or molecule["idx"]), targets)


def md17(path: Path) -> Iterator[Record]:
    """One molecule's ``.npz``: the first edition (z, R, E, F) or the revised one; loaded whole."""
    with np.load(path, allow_pickle=False) as file:
        revised = "nuclear_charges" in file
        names = ("nuclear_charges", "coords", "energies", "forces") if revised else ("z", "R", "E", "F")
        numbers, positions, energies, forces = (file[name] for name in names)
    for k, energy in enumerate(energies.reshape(-1)):
        atoms = Atoms(numbers, positions[k])
        yield Record(labelled(atoms, energy=float(energy), forces=forces[k]), f"{path.stem} {k // SEGMENT}")
