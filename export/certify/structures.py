"""The structures that a certificate is measured on, of whatever elements the model knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.data import atomic_numbers, covalent_radii, reference_states

from triforces_deploy.defects import HOSTS, supercell_of, vacancy

from ..probes import probe_structures

DEFECT = 64
"""Atoms of the cell that loses one."""
NAMES = {"orthogonal": "bulk", "primitive cell": "cell below the cutoff", "one atom": "isolated atom"}
"""What probes.py calls them → what a certificate does."""


def crystal(elements: Sequence[str]) -> Atoms:
    """A perfect crystal near its own lattice constant: a host of defects.py, or the first element as ASE knows it."""
    for name, host in HOSTS.items():
        if set(host.elements) <= set(elements) and not host.random:
            return supercell_of(name, 8)
    state = reference_states[atomic_numbers[elements[0]]]
    if state is not None and state["symmetry"] in ("fcc", "bcc", "hcp", "diamond", "sc"):
        cell: Atoms = bulk(elements[0], orthorhombic=True) if state["symmetry"] == "hcp" else bulk(elements[0], cubic=True)
        return cell
    lattice = 8 / np.sqrt(3) * float(covalent_radii[atomic_numbers[elements[0]]])
    made: Atoms = bulk(elements[0], "diamond", a=lattice, cubic=True)
    return made


def structures(elements: Sequence[str], perfect: Atoms, own: Mapping[str, Atoms]) -> dict[str, Atoms]:
    """Name → structure: the probes of every export, a vacancy, and the user's own.

    Args:
        elements: symbols the model may see.
        perfect: from :func:`crystal`.
        own: the user's.
    """
    probes = {NAMES.get(name, name): atoms for name, atoms in probe_structures(elements, seed=2).items()}
    return {**probes, "defect": defect(perfect), **own}


def defect(perfect: Atoms) -> Atoms:
    """A supercell of about ``DEFECT`` atoms without one of them, slightly rattled."""
    lengths = perfect.cell.lengths()
    edge = (DEFECT / len(perfect) * float(np.prod(lengths))) ** (1 / 3)
    cell = perfect.repeat(tuple(max(1, round(edge / length)) for length in lengths))
    broken = vacancy(cell, np.random.default_rng(7))
    broken.rattle(0.02, seed=7)
    return broken
