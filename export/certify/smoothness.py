"""Whether energy and forces change without jumps when atoms come and go, through the cutoff and every inner one.

A step along the path whose change stands out is divided again until it is ``Limits.finest`` long. What a smooth function
changes by then is nothing; what a jump changes by is the jump.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from ase import Atoms
from ase.data import covalent_radii

from triforces_deploy.certificate import Check
from triforces_deploy.potential import Potential

from .base import Array, Curve, Section, Subject, evaluate, judged, largest
from .differences import differences

FAMILY = "Smoothness"
DECLARED = "Declared by the model"
POINTS = 241
"""Along a path, before anything is divided."""
SUSPECTS = 3
"""Steps of each kind that are divided."""
WINDOW = 4
"""Steps on either side that are a step's surroundings."""
DIVISIONS = 24
"""Parts of a step; three rounds lead from 0.01 Å to 1e-6 Å."""
SWING = 1.2
"""Å. How far an atom of the crystal is moved, so that its neighbours of many shells come and go."""
SLOPES = 8
"""Places along a path, about, where the force is compared with the slope of the energy."""
KINK, KINK_ALLOWED = 1e-4, 1e-3
"""Å, eV/Å²."""


@dataclasses.dataclass(frozen=True)
class Path:
    """Structures that depend on one length, and the component of the forces along it."""

    title: str
    x: Array
    """Å."""
    at: Callable[[float], Atoms]
    mover: int
    direction: Array
    """(3,) unit vector."""
    marks: tuple[float, ...] = ()
    """Å. Where the moved atom crosses a cutoff of the first one."""


def check(subject: Subject) -> Section:
    """An atom that leaves a molecule, one that swings in a crystal, and whether their forces have kinks."""
    checks, curves = [], []
    for path in (leaving(subject), swinging(subject)):
        found, curve = _along(subject, path)
        checks += found
        curves.append(curve)
    return Section((*checks, *_declared(subject)), tuple(curves))


def leaving(subject: Subject) -> Path:
    """From close to an atom of a molecule to beyond its cutoff."""
    molecule, cutoff = subject.structures["molecule"], subject.facts.cutoff
    first = molecule.positions[0]
    direction = first - molecule.positions[1:].mean(axis=0) + np.array([0.03, 0.05, 0.02])
    direction /= np.linalg.norm(direction)
    radius = 2 * float(covalent_radii[molecule.numbers].mean())
    start = max(min(0.9 * min((*subject.inner_cutoffs, cutoff)), 0.5 * cutoff), 0.6 * radius)

    def at(x: float) -> Atoms:
        extra = Atoms(numbers=molecule.numbers[:1], positions=[first + x * direction])
        both: Atoms = molecule + extra
        return both

    marks = tuple(r for r in (*subject.inner_cutoffs, cutoff) if r > start)
    return Path("An atom leaves a molecule", np.linspace(start, 1.08 * cutoff, POINTS), at, len(molecule), direction, marks)


def swinging(subject: Subject) -> Path:
    """One atom of a crystal through its place: neighbours pass the cutoff, and the order of their distances changes."""
    crystal = subject.structures["triclinic"]
    direction = np.array([0.61, -0.53, 0.59])
    direction /= np.linalg.norm(direction)

    def at(x: float) -> Atoms:
        moved: Atoms = crystal.copy()
        moved.positions[0] += x * direction
        return moved

    half = SWING / 2
    return Path("An atom swings in a crystal", np.linspace(-half, half, POINTS // 2), at, 0, direction)


def _along(subject: Subject, path: Path) -> tuple[list[Check], Curve]:
    limits = subject.limits
    energy, force = _values(subject.potential, path, path.x)
    title = path.title[0].lower() + path.title[1:]
    lines = {"energy": energy - energy[-1], "force along the path": force}
    curve = Curve(path.title, path.x, "distance, Å", lines, "eV, eV/Å", path.marks)
    if not np.isfinite([energy, force]).all():
        return [judged(FAMILY, f"{title}: finite", float("nan"), 0.0, "Energy or forces are not finite along the path.")], curve
    jumps = [_jumps(subject.potential, path, values, k, limits.finest) for k, values in enumerate((energy, force))]
    said = f"What is left of the largest change in a step of {limits.finest:g} Å, at {{:.3f}} Å; a jump heats a simulation."
    checks = [
        judged(FAMILY, f"{title}: jump of the {what}", size, allowed, said.format(where), unit)
        for (size, where), what, allowed, unit in zip(
            jumps, ("energy", "force"), (limits.jump_energy, limits.jump_force), ("eV", "eV/Å"), strict=True
        )
    ]
    checks.append(_work(subject, path, force, title))
    return [*checks, *_kinks(subject, path)], curve


def _values(potential: Potential, path: Path, x: Array) -> Array:
    """(2, len(x)): energy, and force of the moved atom along the path."""
    results = evaluate(potential, [path.at(float(k)) for k in x])
    return np.array([[r.energy for r in results], [r.forces[path.mover] @ path.direction for r in results]])


def _jumps(potential: Potential, path: Path, values: Array, kind: int, finest: float) -> tuple[float, float]:
    """Size and place of the largest jump of the energy (kind 0) or the force (kind 1)."""
    found = [(0.0, float(path.x[0]))]
    for step in _suspects(path, _surprise(values)):
        low, high = float(path.x[step]), float(path.x[step + 1])
        while True:
            part = (high - low) / DIVISIONS
            x = np.linspace(
                low - part, high + part, DIVISIONS + 3
            )  # one step more on either side, to compare the outer ones with
            change = _surprise(_values(potential, path, x)[kind])
            worst = int(change.argmax())
            low, high = float(x[worst]), float(x[worst + 1])
            if part <= finest:
                break
        found.append((float(change.max()), low))
    return max(found)


def _suspects(path: Path, surprise: Array) -> set[int]:
    """The steps that stand out from all, those that stand out from their surroundings, and those with a known cutoff."""
    padded = np.pad(surprise, WINDOW, mode="reflect")
    around = np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * WINDOW + 1), axis=1)
    relative = surprise / (around + 1e-12)
    standing_out = [*np.argsort(surprise)[-SUSPECTS:], *np.argsort(relative)[-SUSPECTS:]]
    known = [np.searchsorted(path.x, mark) - 1 for mark in path.marks if path.x[0] < mark < path.x[-1]]
    return {int(step) for step in (*standing_out, *known)}


def _surprise(values: Array) -> Array:
    """How much each step of a curve differs from the step beside it that it resembles more; 0 for the first and the last."""
    beside = np.abs(np.diff(np.diff(values)))
    return np.asarray(np.minimum(np.append(0.0, beside), np.append(beside, 0.0)))


def _work(subject: Subject, path: Path, force: Array, title: str) -> Check:
    """The force at a few places against the slope of the energy there."""
    limits = subject.limits
    chosen = slice(1, -1, len(path.x) // SLOPES)
    slopes = differences(subject.potential, [_from(path, float(x)) for x in path.x[chosen]], limits.step)
    error = largest(slopes + force[chosen]) / max(largest(force), 1e-3)
    said = f"The force at {len(slopes)} places of the path against the slope of the energy, relative to the largest force."
    return judged(FAMILY, f"{title}: force = slope of the energy", error, limits.derivative, said, fail=3.0)


def _from(path: Path, x: float) -> Callable[[float], Atoms]:
    return lambda h: path.at(x + h)


def _kinks(subject: Subject, path: Path) -> list[Check]:
    """Whether the slope of the force is the same on both sides of each cutoff; only float64 can tell."""
    if subject.facts.precision != "float64" or not path.marks:
        return []
    found = []
    for mark in path.marks:
        (_, force) = _values(subject.potential, path, mark + KINK * np.arange(-3.0, 4.0))
        s = np.diff(force) / KINK
        left, right = s[2] + 0.5 * (s[2] - s[1]), s[3] - 0.5 * (s[4] - s[3])
        found.append((abs(float(left - right)), mark))
    size, where = max(found)
    at = ", ".join(f"{mark:.3g}" for mark in path.marks)
    said = f"Change of the force's slope across a cutoff, at {at} Å; worst at {where:.3g} Å. Phonons and long runs feel a kink."
    return [judged(FAMILY, "kinks of the force at the cutoffs", size, KINK_ALLOWED, said, "eV/Å²", worst="warn")]


def _declared(subject: Subject) -> list[Check]:
    facts = subject.facts
    rows = {"smooth": facts.smooth, "conservative": facts.conservative, "separable": facts.separable}
    return [
        Check(DECLARED, name, "pass" if holds else "warn", float(not holds), "", 0.0, said)
        for name, holds in rows.items()
        for said in (f"The model says of itself that it is {'' if holds else 'not '}{name}.",)
    ]
