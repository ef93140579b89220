"""Which distances the short-range repulsion takes over at, where export lays it over a model trained without it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ase.data import atomic_numbers, covalent_radii

from triforces_deploy.config import ZBLSwitch
from triforces_deploy.errors import UserError
from triforces_deploy.model import Model

BONDED, BELOW_BOND = 1.1, 0.95
"""Of the sum of the covalent radii. A pair that training never saw closer than the first was not bonded there, and its
shortest distance says nothing; the second is where the repulsion ends at most."""
OF_RADII = 0.75
"""The same, where no bond is known: below every bond of main-group elements, triple ones too."""
INNER = 0.7
"""Of the outer distance. A narrower switch would be a steeper force."""
MOST_SHOWN = 6
"""Pairs of elements that the policy lists one by one; of more it gives the range."""


def switches(
    option: str, model: Model, elements: Sequence[str], provenance: Mapping[str, Any]
) -> tuple[tuple[ZBLSwitch, ...], str]:
    """The switching distances of every pair of elements, and the line that says what they are.

    Args:
        option: 'auto', or one pair of distances for all, 'INNER,OUTER' in Å.
        model: whose cutoff bounds them.
        elements: that the artifact will know.
        provenance: of the checkpoint; ``shortest_distances`` are those of its training structures.

    Raises:
        UserError: a model that has the repulsion already, a bad option, or an outer distance at which the model was trained.
    """
    if model.config.zbl:
        raise UserError("--zbl: this model was trained with the repulsion (model.zbl: true); leave the option out")
    seen = _seen(provenance)
    given = None if option == "auto" else _parsed(option, model.config.cutoff)
    found, guessed = [], []
    for pair in itertools.combinations_with_replacement(elements, 2):
        shortest = seen.get(frozenset(pair))
        if given is not None and shortest is not None and given[1] > shortest:
            raise UserError(
                f"--zbl: outer {given[1]:g} Å is beyond {shortest:g} Å, the shortest {'-'.join(pair)} distance that the model "
                "was trained on; give a smaller one, or auto"
            )
        radii = sum(float(covalent_radii[atomic_numbers[s]]) for s in pair)
        if shortest is None or shortest > BONDED * radii:
            guessed.append("-".join(pair))
            shortest = OF_RADII * radii
        outer = math.floor(100 * min(shortest, BELOW_BOND * radii, model.config.cutoff)) / 100
        inner, outer = given or (round(INNER * outer, 2), outer)
        found.append(ZBLSwitch(*pair, inner, outer))
    return tuple(found), f"short range: ZBL overlaid, {_ranges(found)}; {_source(given, found, guessed)}"


def _seen(provenance: Mapping[str, Any]) -> dict[frozenset[str], float]:
    distances = provenance.get("shortest_distances", {})
    if not isinstance(distances, dict):
        return {}
    return {frozenset(str(pair).split("-")): float(r) for pair, r in distances.items() if isinstance(r, int | float) and r > 0}


def _parsed(option: str, cutoff: float) -> tuple[float, float]:
    try:
        inner, outer = (float(part) for part in option.split(","))
    except ValueError:
        inner = outer = math.nan
    if not 0 <= inner < outer <= cutoff:
        raise UserError(
            f"--zbl '{option}': expected auto, or INNER,OUTER in Å with 0 ≤ INNER < OUTER ≤ {cutoff:g}, e.g. 0.9,1.6"
        )
    return round(inner, 2), round(outer, 2)


def _ranges(found: Sequence[ZBLSwitch]) -> str:
    if len(found) <= MOST_SHOWN:
        each = ", ".join(f"{s.first}-{s.second} {s.inner:g}/{s.outer:g}" for s in found)
        return f"alone below / gone beyond (Å): {each}"
    inner, outer = [s.inner for s in found], [s.outer for s in found]
    return (
        f"alone below {min(inner):g} to {max(inner):g} Å and gone beyond {min(outer):g} to {max(outer):g} Å "
        f"in {len(found)} pairs of elements"
    )


def _source(given: tuple[float, float] | None, found: Sequence[ZBLSwitch], guessed: Sequence[str]) -> str:
    which = "any pair" if len(guessed) == len(found) else ", ".join(guessed)
    if given is not None:
        return "as asked" + (f"; the checkpoint knows no bond of {which} to compare with" if guessed else "")
    known = "from the shortest distances in training" if len(guessed) < len(found) else ""
    rule = f"{OF_RADII:g} sums of covalent radii for {which}, of which it knows no bond" if guessed else ""
    return "; ".join(part for part in (known, rule) if part)
