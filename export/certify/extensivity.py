"""Whether the energy grows with the number of atoms, and parts that cannot feel each other keep their own."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
from ase import Atoms

from triforces_deploy.certificate import Check
from triforces_deploy.potential import Facts

from .base import Section, Subject, evaluate, judged, skipped

FAMILY = "Extensivity"
REPEATS = ((1, 1, 1), (2, 2, 2), (3, 1, 1))
GAP = 10.0
"""Å between fragments, beyond what the model can see."""
LARGEST = 16
"""Atoms of the cell that is repeated."""


def check(subject: Subject) -> Section:
    """Supercells, and pairs of fragments of equal and of different composition."""
    return Section((_supercells(subject), *_fragments(subject)))


def _supercells(subject: Subject) -> Check:
    cell = _small_cell(subject)
    results = evaluate(subject.potential, [cell.repeat(r) for r in REPEATS])
    per_atom = [r.energy / len(r.energies) for r in results]
    said = (
        "Energy per atom of 1×1×1, 2×2×2 and 3×1×1 cells of one rattled crystal; otherwise defect energies depend on the box."
    )
    spread = max(per_atom) - min(per_atom) if np.isfinite(per_atom).all() else np.nan
    return judged(FAMILY, "supercells", spread, subject.limits.energy, said, "eV/atom")


def _small_cell(subject: Subject) -> Atoms:
    cell: Atoms = subject.crystal.copy()
    if len(cell) > LARGEST:
        cell = subject.structures["cell below the cutoff"].copy()
    cell.rattle(0.05, seed=11)
    return cell


def _fragments(subject: Subject) -> tuple[Check, Check]:
    facts, limits = subject.facts, subject.limits
    one = subject.structures["molecule"].copy()
    other = one.copy()
    other.rattle(0.1, seed=13)
    if facts.composition == "frozen":
        other.set_chemical_symbols(list(one.symbols))
    said = "E(A+B) − E(A) − E(B) of two fragments that cannot see each other"
    same = judged(
        FAMILY,
        "separability, equal composition",
        _excess(subject, one, other),
        limits.energy,
        f"{said}, both of the same composition.",
        "eV/atom",
    )
    elements = list(facts.reference) or list(facts.elements)
    name = "separability, different composition"
    if len(elements) < 2:
        return same, skipped(FAMILY, name, "The model knows one element.")
    one.symbols[:], other.symbols[:] = elements[0], elements[1]
    excess = _excess(subject, one, other)
    live = facts.composition == "live"
    why = f"{said}, one of {elements[0]} and one of {elements[1]}. {_cause(facts)}"
    worst: Literal["warn", "fail"] = "warn" if live and same.verdict == "pass" else "fail"
    different = judged(FAMILY, name, excess, limits.energy, why, "eV/atom", worst=worst)
    if live and different.verdict == "pass":  # below what this precision resolves, but there
        different = dataclasses.replace(different, verdict="warn")
    return same, different


def _cause(facts: Facts) -> str:
    if facts.composition == "live":
        return (
            "The composition stream is live: every atom feels the composition of the whole box, however far. Compare energies "
            "at one composition only, or export with --composition frozen."
        )
    return "It must vanish, whatever the composition."


def _excess(subject: Subject, one: Atoms, other: Atoms) -> float:
    """eV/atom."""
    far = other.copy()
    far.positions[:, 0] += np.ptp(one.positions[:, 0]) + np.ptp(other.positions[:, 0]) + _reach(subject.facts) + GAP
    both = one + far
    a, b, ab = evaluate(subject.potential, [one, other, both])
    return abs(ab.energy - a.energy - b.energy) / len(both)


def _reach(facts: Facts) -> float:
    return max(facts.cutoff, facts.receptive_field)
