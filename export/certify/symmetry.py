"""What must not depend on where a structure stands, how it is turned and how its atoms are numbered."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from ase import Atoms

from .base import Array, Evaluated, Section, Subject, evaluate, judged, largest

FAMILY = "Symmetry"
STRUCTURES = ("triclinic", "slab", "molecule")
ROTATIONS = 5

Change = Callable[[Atoms, np.random.Generator], tuple[Atoms, Callable[[Evaluated], Array]]]
"""A structure to its equal, and what turns the new forces back."""


def check(subject: Subject) -> Section:
    """Translation, permutation and rotation."""
    limits = subject.limits
    energy, forces = _worst(subject, _translated, 1)
    said = "Shifted as a whole, single atoms also by lattice vectors."
    checks = [
        judged(FAMILY, "translation: energy", energy, limits.energy, said, "eV/atom"),
        judged(FAMILY, "translation: forces", forces, limits.relative, said),
    ]
    energy, forces = _worst(subject, _permuted, 1)
    said = "Atoms renumbered."
    checks += [
        judged(FAMILY, "permutation: energy", energy, limits.energy, said, "eV/atom"),
        judged(FAMILY, "permutation: forces", forces, limits.relative, said),
    ]
    energy, forces = _worst(subject, _rotated, ROTATIONS)
    said = (
        f"{ROTATIONS} rotations of each structure. A model that is not exactly invariant has learnt its invariance from data; "
        "tumbling molecules, grains and elastic constants feel the difference."
    )
    checks += [
        judged(FAMILY, "rotation: energy", energy, limits.energy, said, "eV/atom", worst="warn"),
        judged(FAMILY, "rotation: forces", forces, limits.relative, said, worst="warn"),
    ]
    return Section(tuple(checks))


def _worst(subject: Subject, change: Change, times: int) -> tuple[float, float]:
    """Largest change of the energy, eV/atom, and of the forces, relative to the largest."""
    rng = np.random.default_rng(5)
    energy = forces = 0.0
    for name in (n for n in STRUCTURES if n in subject.structures):
        atoms = subject.structures[name]
        changed = [change(atoms, rng) for _ in range(times)]
        old, *new = evaluate(subject.potential, [atoms, *(a for a, _ in changed)])
        for result, (_, back) in zip(new, changed, strict=True):
            energy = float(np.maximum(energy, abs(result.energy - old.energy) / len(atoms)))  # a NaN stays
            forces = float(np.maximum(forces, largest(back(result) - old.forces) / max(largest(old.forces), 1e-6)))
    return energy, forces


def _translated(atoms: Atoms, rng: np.random.Generator) -> tuple[Atoms, Callable[[Evaluated], Array]]:
    moved = atoms.copy()
    images = rng.integers(-1, 2, (len(atoms), 3)) * atoms.pbc
    moved.positions += rng.uniform(-5, 5, 3) + images @ atoms.cell.array
    return moved, lambda result: result.forces


def _permuted(atoms: Atoms, rng: np.random.Generator) -> tuple[Atoms, Callable[[Evaluated], Array]]:
    order = rng.permutation(len(atoms))
    inverse = np.argsort(order)
    return atoms[order], lambda result: result.forces[inverse]


def _rotated(atoms: Atoms, rng: np.random.Generator) -> tuple[Atoms, Callable[[Evaluated], Array]]:
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    q[:, 0] *= np.sign(np.linalg.det(q))
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ q.T)
    turned.positions = atoms.positions @ q.T
    return turned, lambda result: result.forces @ q
