"""From the verdicts to plain words: what a file may be used for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from triforces_deploy.certificate import Check, Verdict
from triforces_deploy.potential import Facts

from . import differences, dimers, dynamics, extensivity, parity, ranks, smoothness, symmetry

ORDER: tuple[Verdict, ...] = ("pass", "warn", "fail")
EVERYTHING = (
    "molecular dynamics at constant energy or temperature",
    "relaxation",
    "phonons and elastic constants",
    "energies of defects",
)
"""What a file without any finding may be used for."""

DYNAMICS, _, PHONONS, DEFECTS = EVERYTHING


class Loss(NamedTuple):
    """What a family's verdict means for the use of the file."""

    family: str
    verdict: Verdict
    taken: tuple[str, ...]
    """Of ``EVERYTHING``."""
    not_for: str


LOSSES = (
    Loss(parity.FAMILY, "fail", EVERYTHING, "anything: a form in the file is not the model that was trained"),
    Loss(ranks.FAMILY, "fail", (), "LAMMPS on the numbers of ranks that failed"),
    Loss(
        differences.FAMILY, "fail", (DYNAMICS, PHONONS), "anything that needs a conserved energy: forces are not its derivative"
    ),
    Loss(
        differences.FAMILY, "warn", (DYNAMICS, PHONONS), "long dynamics: forces are the derivative of the energy only roughly"
    ),
    Loss(
        symmetry.FAMILY,
        "fail",
        EVERYTHING,
        "anything: the energy depends on where a structure stands or how atoms are numbered",
    ),
    Loss(symmetry.FAMILY, "warn", (), "comparing structures turned against each other more finely than the rotation error"),
    Loss(
        extensivity.FAMILY, "fail", (DEFECTS,), "energies that compare boxes of different size, or fragments with their whole"
    ),
    Loss(extensivity.FAMILY, "warn", (), "energies that compare boxes of different composition"),
    Loss(smoothness.FAMILY, "fail", (DYNAMICS, PHONONS), "dynamics at constant energy, phonons: energy or forces jump"),
    Loss(smoothness.FAMILY, "warn", (PHONONS,), "phonons and elastic constants: the forces have kinks or are noisy"),
    Loss(smoothness.DECLARED, "warn", (DYNAMICS,), "what the model disclaims of itself"),
    Loss(dimers.FAMILY, "fail", (), "atoms that come close: the energy is not finite there"),
    Loss(dimers.FAMILY, "warn", (), "collision cascades, very high pressure or temperature: atoms may fall together"),
    Loss(dynamics.FAMILY, "fail", (DYNAMICS,), "dynamics: the total energy drifts or the run breaks off"),
    Loss(dynamics.FAMILY, "warn", (), "runs much longer than the one measured here, without a thermostat"),
)


def worst(checks: Sequence[Check]) -> Verdict:
    """The verdict of several checks; 'skipped' where none was made."""
    made = [check.verdict for check in checks if check.verdict != "skipped"]
    return max(made, key=ORDER.index, default="skipped")


def uses(checks: Sequence[Check], facts: Facts) -> tuple[str, str]:
    """What the file may be used for, and what it may not."""
    found = {(check.family, check.verdict) for check in checks}
    lost = [loss for loss in LOSSES if (loss.family, loss.verdict) in found]
    left = [use for use in EVERYTHING if not any(use in loss.taken for loss in lost)]
    nothing = any(loss.taken == EVERYTHING for loss in lost)
    use = "; ".join(left) if left else "nothing" if nothing else "energies and forces of single structures"
    elements = f"elements other than {', '.join(facts.reference or facts.elements)}"
    return use, "; ".join([elements, *(loss.not_for for loss in lost)])
