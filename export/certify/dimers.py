"""Two atoms pushed together: what a model does where nobody has labelled anything."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii

from triforces_deploy.certificate import Check

from .base import Array, Curve, Section, Subject, evaluate, judged

FAMILY = "Short range"
PAIRS = 10
"""Pairs of elements whose curves are measured, at most."""
CLOSEST = 0.5
"""Å."""
POINTS = 200
HOLE = 0.05
"""eV. A fall of this size on the way inward is a trap for the atoms of a hot or compressed crystal."""


def check(subject: Subject) -> Section:
    """Pairs of atoms from 0.5 Å to the cutoff: finite, and repulsive at short range."""
    elements = list(subject.facts.reference) or list(subject.facts.elements)
    pairs = [(a, b) for k, a in enumerate(elements) for b in elements[k:]][:PAIRS]
    x = np.linspace(CLOSEST, 1.02 * subject.facts.cutoff, POINTS)
    lines, checks = {}, []
    for a, b in pairs:
        direction = np.array([0.64, 0.48, 0.60])
        found = evaluate(subject.potential, [Atoms([a, b], [np.zeros(3), r * direction]) for r in x])
        lines[f"{a}–{b}"] = energy = np.array([r.energy for r in found])
        radii = sum(float(covalent_radii[atomic_numbers[s]]) for s in (a, b))
        checks.append(_judge(f"{a}–{b}", hole(x, energy, radii)))
    return Section(tuple(checks), (_curve(x, lines),))


def hole(x: Array, energy: Array, radii: float) -> float:
    """How far the energy falls on the way inward from 0.8 sums of covalent radii, eV; NaN where it is not finite."""
    if not np.isfinite(energy).all():
        return float("nan")
    inward = energy[x <= 0.8 * radii][::-1]
    return float((np.maximum.accumulate(inward) - inward).max()) if len(inward) else 0.0


def _judge(pair: str, depth: float) -> Check:
    said = (
        f"How far the energy of two atoms falls on the way inward to {CLOSEST} Å. More than the bound, and atoms of a hot or "
        "compressed crystal may fall together; `tfdeploy export --zbl auto` puts a wall there, and so does training with zbl."
    )
    return judged(FAMILY, f"dimer {pair}", depth, HOLE, said, "eV", worst="warn")


def _curve(x: Array, lines: dict[str, Array]) -> Curve:
    shifted = {pair: energy - energy[-1] for pair, energy in lines.items()}
    deepest = min((float(np.nanmin(energy)) for energy in shifted.values()), default=0.0)
    return Curve("Two atoms", x, "distance, Å", shifted, "energy, eV", y_limit=(1.3 * min(deepest, -1.0), 30.0))
