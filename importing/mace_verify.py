"""An imported MACE model against mace-torch, where that is installed."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.data import atomic_numbers, covalent_radii

from triforces_deploy.artifact import Parity
from triforces_deploy.errors import UserError

from .comparing import Results, compared, results_of
from .imported import Imported

PACKAGE = "mace-torch"
TOLERANCE = 1e-6
"""Relative. Models trained in float32 have constants rounded to it in mace-torch and exact ones here: about 1e-8."""


def against_mace(path: Path, made: Imported) -> Parity:
    """Energies per atom, forces and stress in float64, on crystals of all elements and a lone atom of each.

    Raises:
        UserError: mace-torch is not here, or the numbers differ.
    """
    try:
        from mace.calculators import MACECalculator
    except ImportError as error:
        raise UserError(
            f"--verify needs {PACKAGE} in this environment: pip install {PACKAGE}, or leave --verify out"
        ) from error
    head = {"head": made.said["head"]} if made.said["heads"] else {}
    structures = _structures(made.model.config.elements)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # already while the file is read: what it computes then stays as it is
    try:
        calculator = MACECalculator(model_paths=[str(path)], device="cpu", default_dtype="float64", **head)
        pairs = [(results_of(made, atoms), _theirs(calculator, atoms)) for atoms in structures]
    finally:
        torch.set_default_dtype(before)
    return compared(path, pairs, f"{PACKAGE} {importlib.metadata.version(PACKAGE)}", TOLERANCE)


def _structures(elements: tuple[str, ...]) -> list[Atoms]:
    """Rattled crystals in skewed cells, each with a few of the elements, until all have been there; and lone atoms."""
    rng = np.random.default_rng(0)
    groups = [elements[k : k + 4] for k in range(0, len(elements), 4)]
    crystals = []
    for group in groups:
        radius = float(np.mean([covalent_radii[atomic_numbers[symbol]] for symbol in group]))
        atoms = bulk("Si", "diamond", a=2 * radius * 4 / np.sqrt(3), cubic=True)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.uniform(-0.08, 0.08, (3, 3))), scale_atoms=True)
        atoms.positions += rng.normal(0.0, 0.08, atoms.positions.shape)
        atoms.symbols[:] = rng.permutation([group[k % len(group)] for k in range(len(atoms))])
        crystals.append(atoms)
    return [*crystals, *(Atoms(symbol) for symbol in elements)]


def _theirs(calculator: object, atoms: Atoms) -> Results:
    atoms = atoms.copy()
    atoms.calc = calculator
    results = {"energy": np.array(atoms.get_potential_energy() / len(atoms)), "forces": atoms.get_forces()}
    return results | ({"stress": atoms.get_stress(voigt=False)} if atoms.cell.rank == 3 else {})
