"""An imported MACE model against mace-torch, where that is installed."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.data import atomic_numbers, covalent_radii
from numpy.typing import NDArray

from triforces_deploy import derivatives
from triforces_deploy.artifact import Parity
from triforces_deploy.errors import UserError
from triforces_deploy.neighbours import graph_from_atoms

from .imported import Imported

PACKAGE = "mace-torch"
TOLERANCE = 1e-6
"""Relative. Models trained in float32 have constants rounded to it in mace-torch and exact ones here: about 1e-8."""

Results = dict[str, NDArray[np.float64]]


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
        pairs = [(_ours(made, atoms), _theirs(calculator, atoms)) for atoms in structures]
    finally:
        torch.set_default_dtype(before)
    worst = {key: _relative([(a[key], b[key]) for a, b in pairs if key in b]) for key in ("energy", "forces", "stress")}
    reference = f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"
    result = Parity("imported", reference, len(structures), **worst, tolerance=TOLERANCE)
    for quantity, value in worst.items():
        if not value <= TOLERANCE:
            raise UserError(f"{path}: imported {quantity} differ from {reference} by {value:.2e} relative; report this model")
    return result


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


def _ours(made: Imported, atoms: Atoms) -> Results:
    graph = graph_from_atoms(atoms, made.model.config.cutoff)
    energies, edge_forces = made.model.run(graph)
    tensors = {
        "energy": energies.sum() / len(atoms),
        "forces": derivatives.forces(edge_forces, graph),
        "stress": derivatives.stress(edge_forces, graph)[0],
    }
    return {key: tensor.numpy() for key, tensor in tensors.items()}


def _theirs(calculator: object, atoms: Atoms) -> Results:
    atoms = atoms.copy()
    atoms.calc = calculator
    results = {"energy": np.array(atoms.get_potential_energy() / len(atoms)), "forces": atoms.get_forces()}
    return results | ({"stress": atoms.get_stress(voigt=False)} if atoms.cell.rank == 3 else {})


def _relative(pairs: list[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> float:
    """Largest difference over the largest value of all structures."""
    scale = max(float(np.abs(b).max()) for _, b in pairs)
    return max(float(np.abs(a - b).max()) for a, b in pairs) / (scale or 1.0)
