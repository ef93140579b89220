"""Whether forces and stress are the derivatives of the energy that is returned.

Central differences at two steps, D(h) = (E(+h) − E(−h)) / 2h, combined to (4 D(h/2) − D(h)) / 3, whose error is of order h⁴.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from ase import Atoms

from triforces_deploy.potential import Potential

from .base import Array, Section, Subject, evaluate, judged, largest

FAMILY = "Derivatives"
STRUCTURES = ("triclinic", "molecule", "cell below the cutoff")
COMPONENTS = 12
"""Of the forces of each structure, at random."""
WIDTH = 4.0
"""Å. A strain moves atoms this far apart by as much as a displacement of one step; it makes a strain of a step."""
MEANING = (
    "Forces and stress must be derivatives of the energy, or the energy of a simulation is not conserved, "
    "whatever the time step."
)


def check(subject: Subject) -> Section:
    """Force components and the six strains of the named structures."""
    limits, rng = subject.limits, np.random.default_rng(3)
    worst = {"forces": (0.0, ""), "stress": (0.0, "")}
    for name in (n for n in STRUCTURES if n in subject.structures):
        atoms = subject.structures[name]
        (result,) = evaluate(subject.potential, [atoms])
        picked = _pick(len(atoms), rng)
        moves = [_displaced(atoms, n, axis) for n, axis in picked]
        slopes = differences(subject.potential, moves, limits.step)
        expected = -np.array([result.forces[n, axis] for n, axis in picked])
        errors = {"forces": largest(slopes - expected) / max(largest(result.forces), 1e-3)}
        if atoms.pbc.any():
            strains = [_strained(atoms, a, b) for a, b in STRAINS]
            slopes = differences(subject.potential, strains, limits.step / WIDTH)
            expected = np.array([result.virial[a, b] for a, b in STRAINS])
            errors["stress"] = largest(slopes - expected) / max(largest(result.virial), 1e-2)
        worst = {k: max(worst[k], (errors.get(k, 0.0), name), key=lambda pair: pair[0]) for k in worst}
    how = f"Finite differences, step {limits.step:g} Å and half of it, combined; worst on '{{}}'. {MEANING}"
    return Section(
        tuple(
            judged(FAMILY, f"{k} = derivative of the energy", error, limits.derivative, how.format(where), fail=3.0)
            for k, (error, where) in worst.items()
        )
    )


def differences(potential: Potential, families: Sequence[Callable[[float], Atoms]], step: float) -> Array:
    """dE/dx at 0 of structures that depend on one number each."""
    moved = [family(sign * h) for family in families for h in (step, step / 2) for sign in (1, -1)]
    energies = np.array([r.energy for r in evaluate(potential, moved)]).reshape(-1, 2, 2)
    wide, narrow = (energies[:, k, 0] - energies[:, k, 1] for k in (0, 1))
    return np.asarray((4 * narrow / step - wide / (2 * step)) / 3)


STRAINS = tuple(itertools.combinations_with_replacement(range(3), 2))


def _pick(n_atoms: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    every = [(n, axis) for n in range(n_atoms) for axis in range(3)]
    return [every[k] for k in rng.permutation(len(every))[:COMPONENTS]]


def _displaced(atoms: Atoms, n: int, axis: int) -> Callable[[float], Atoms]:
    def at(x: float) -> Atoms:
        moved: Atoms = atoms.copy()
        moved.positions[n, axis] += x
        return moved

    return at


def _strained(atoms: Atoms, a: int, b: int) -> Callable[[float], Atoms]:
    """The symmetric part of a strain x in component ab, so that dE/dx is the virial's component."""

    def at(x: float) -> Atoms:
        strain = np.zeros((3, 3))
        strain[a, b] += x / 2
        strain[b, a] += x / 2
        deformed: Atoms = atoms.copy()
        deformed.set_cell(atoms.cell.array @ (np.eye(3) + strain))
        deformed.positions = atoms.positions @ (np.eye(3) + strain)
        return deformed

    return at
