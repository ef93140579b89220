"""Small structures that between them meet every kind of input a deployed potential sees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.data import atomic_numbers, covalent_radii


def probe_structures(elements: Sequence[str], seed: int = 0) -> dict[str, Atoms]:
    """Rattled structures of the given elements, bond lengths from covalent radii.

    Returns:
        Name → structure: orthogonal and triclinic crystals, a slab, a molecule, a cell smaller than any cutoff, one atom.
    """
    rng = np.random.default_rng(seed)
    lattice = 4 / np.sqrt(3) * 2 * float(np.mean([covalent_radii[atomic_numbers[s]] for s in elements]))
    crystal = bulk("Si", "diamond", a=lattice, cubic=True)
    tilted = bulk("Si", "diamond", a=lattice).repeat((3, 2, 2))
    tilted.set_cell(tilted.cell.array @ (np.eye(3) + rng.uniform(-0.05, 0.05, (3, 3))), scale_atoms=True)
    slab = crystal.repeat((2, 2, 1))
    slab.pbc = (True, True, False)
    molecule = Atoms("Si5", crystal.positions[:5], pbc=False)
    structures = {
        "orthogonal": crystal.repeat((2, 2, 1)),
        "triclinic": tilted,
        "slab": slab,
        "molecule": molecule,
        "primitive cell": bulk("Si", "diamond", a=lattice),
        "one atom": Atoms("Si", [(0.0, 0.0, 0.0)], pbc=False),
    }
    for atoms in structures.values():
        atoms.symbols[:] = rng.choice(list(elements), len(atoms))
        atoms.positions += rng.normal(0.0, 0.05, atoms.positions.shape)
    return structures
