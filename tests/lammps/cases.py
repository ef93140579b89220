"""Structures that a host gets wrong first."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import bulk


def _rattled(atoms: Atoms, amplitude: float = 0.12, seed: int = 5) -> Atoms:
    rng = np.random.default_rng(seed)
    atoms.positions += rng.normal(scale=amplitude, size=atoms.positions.shape)
    atoms.symbols[rng.permutation(len(atoms))[: max(1, len(atoms) // 4)]] = "Ge"
    atoms.wrap()
    return atoms


def orthogonal() -> Atoms:
    return _rattled(bulk("Si", "diamond", a=5.43, cubic=True) * (2, 2, 2))


def triclinic() -> Atoms:
    atoms = bulk("Si", "diamond", a=5.43, cubic=True) * (2, 1, 1)
    atoms.set_cell(atoms.cell.array @ np.array([[1, 0, 0], [0.21, 1, 0], [-0.13, 0.34, 1]]), scale_atoms=True)
    return _rattled(atoms)


def slab() -> Atoms:
    atoms = _rattled(bulk("Si", "diamond", a=5.43, cubic=True) * (2, 2, 1))
    atoms.set_cell(np.diag([10.86, 10.86, 14.0]))
    atoms.positions[:, 2] += 4.0
    atoms.pbc = (True, True, False)
    return atoms


def below_cutoff() -> Atoms:
    """Two atoms in a cell whose heights are all below the cutoff, so that atoms see several images of themselves."""
    edge = 5.43 / np.sqrt(2)
    cell = np.array([[1, 0, 0], [0.5, np.sqrt(3) / 2, 0], [0.5, np.sqrt(3) / 6, np.sqrt(2 / 3)]]) * edge
    atoms = Atoms("SiGe", scaled_positions=[[0, 0, 0], [0.27, 0.24, 0.25]], cell=cell, pbc=True)
    atoms.wrap()
    return atoms


def lonely() -> Atoms:
    """One atom that sees nothing."""
    return Atoms("Ge", positions=[[3.0, 4.0, 5.0]], cell=[12.0, 13.0, 14.0], pbc=True)


def far_apart() -> Atoms:
    """Two atoms without a pair."""
    return Atoms("SiGe", positions=[[1.0, 1.0, 1.0], [9.0, 9.0, 9.0]], cell=[18.0, 18.0, 18.0], pbc=True)


def travelling() -> Atoms:
    """A cluster in a long box; thrown along it, it leaves every rank that it meets."""
    atoms = _rattled(bulk("Si", "diamond", a=5.43, cubic=True) * (1, 2, 1), amplitude=0.05)
    atoms.set_cell(np.diag([40.0, 12.0, 11.0]))
    atoms.positions += 2.0
    atoms.pbc = True
    return atoms


ALL = {f.__name__: f for f in (orthogonal, triclinic, slab, below_cutoff, lonely, far_apart)}
