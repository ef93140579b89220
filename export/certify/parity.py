"""Is every form in the file the model that was trained? Energies, forces and stress against eager."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from triforces_deploy.certificate import Check
from triforces_deploy.precision import PRECISIONS

from ..verify import bounded
from ..verify_positions import covers
from .base import Array, Evaluated, Section, Subject, evaluate, evaluate_positions, judged, largest, skipped

FAMILY = "Parity"


def check(subject: Subject) -> Section:
    """Every form against eager in its own precision; the one that runs also against eager float64."""
    atoms = list(subject.structures.values())
    allowed = bounded(subject.facts.precision, subject.tolerance_found)

    def against(what: str, found: Sequence[Evaluated], expected: Sequence[Evaluated], allowed: float) -> list[Check]:
        named = dict(zip(subject.structures, zip(found, expected, strict=True), strict=True))
        return compare(FAMILY, what, named, allowed)

    expected = evaluate(subject.reference, atoms)
    checks: list[Check] = []
    for backend, form in subject.forms.items():
        checks += against(f"{backend} = {subject.reference_name}", evaluate(form, atoms), expected, allowed)
    if subject.positions is not None:
        covered = {name: k for k, (name, s) in enumerate(subject.structures.items()) if covers(subject.positions, s)}
        found = [evaluate_positions(subject.positions, atoms[k]) for k in covered.values()]
        named = {name: (mine, expected[k]) for (name, k), mine in zip(covered.items(), found, strict=True)}
        checks += compare(FAMILY, f"{subject.positions.backend} = {subject.reference_name}", named, allowed)
    checks += [skipped(FAMILY, backend, f"Not run on this machine: {why}.") for backend, why in subject.missing.items()]
    if subject.exact is not None:
        found, exact = evaluate(subject.potential, atoms), evaluate(subject.exact, atoms)
        rounding = PRECISIONS[subject.facts.precision].rounding
        checks += against(f"{subject.potential.backend} ≈ eager float64", found, exact, rounding)
    return Section(tuple(checks))


def compare(family: str, what: str, named: Mapping[str, tuple[Evaluated, Evaluated]], allowed: float) -> list[Check]:
    """One check for each quantity: the largest relative deviation over the structures.

    A structure whose own values are below a thousandth of the largest (an atom without forces) is measured against that.

    Args:
        family: heading.
        what: what is compared with what.
        named: structure → what was found and what was expected.
        allowed: largest deviation that passes.
    """
    quantities = {name: [_quantities(*pair)[name] for pair in named.values()] for name in _QUANTITIES}
    checks = []
    for quantity, pairs in quantities.items():
        sizes = [largest(expected) for _, expected in pairs]
        floor = 1e-3 * max(sizes, default=0.0)
        ratios = [_ratio(largest(a - b), max(size, floor)) for (a, b), size in zip(pairs, sizes, strict=True)]
        worst = max(range(len(ratios)), key=lambda k: math.inf if math.isnan(ratios[k]) else ratios[k])
        names = list(named)
        sentence = f"Largest relative deviation; worst on '{names[worst]}' of {', '.join(names)}."
        checks.append(judged(family, f"{what}: {quantity}", ratios[worst], allowed, sentence))
    return checks


_QUANTITIES = ("energy", "energy of each atom", "forces", "stress")


def _quantities(found: Evaluated, expected: Evaluated) -> dict[str, tuple[Array, Array]]:
    energy = (np.array([found.energy]), np.array([expected.energy]))
    rest = ((found.energies, expected.energies), (found.forces, expected.forces), (found.virial, expected.virial))
    return dict(zip(_QUANTITIES, (energy, *rest), strict=True))


def _ratio(deviation: float, size: float) -> float:
    return deviation / size if size > 0 else deviation
