"""All checks of one file, in an order and a time that suit it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from triforces_deploy.certificate import Certificate

from . import differences, dimers, dynamics, extensivity, parity, ranks, smoothness, speed, symmetry
from .base import Section, Subject
from .words import uses, worst

SECONDS, SPEED = 150.0, 20.0
"""About how long everything may take, and the timing at most. The simulation gets what the other checks leave."""

Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A certificate, and what only its page shows."""

    certificate: Certificate
    sections: tuple[Section, ...]


def certify(subject: Subject, digest: str, report: Report = lambda _line: None, seconds: float = SECONDS) -> Outcome:
    """Ask everything.

    Args:
        subject: what is asked.
        digest: of the metadata; stays with the certificate, so that a changed file is noticed.
        report: called with a line at each stage.
        seconds: about how long everything may take; a simulation of the fewest steps is made in any case.
    """
    start = time.monotonic()
    families: Mapping[str, Callable[[], Section]] = {
        "parity with eager": lambda: parity.check(subject),
        "LAMMPS on several ranks": lambda: ranks.check(subject),
        "finite differences": lambda: differences.check(subject),
        "symmetry": lambda: symmetry.check(subject),
        "supercells and fragments": lambda: extensivity.check(subject),
        "smoothness": lambda: smoothness.check(subject),
        "pairs of atoms": lambda: dimers.check(subject),
        "speed and memory": lambda: speed.check(subject, SPEED),
        "constant energy": lambda: dynamics.check(subject, seconds - (time.monotonic() - start)),
    }
    sections = []
    for stage, ask in families.items():
        report(stage)
        sections.append(ask())
    checks = tuple(check for section in sections for check in section.checks)
    use, not_for = uses(checks, subject.facts)
    certificate = Certificate(
        verdict=worst(checks),
        checks=checks,
        use=use,
        not_for=not_for,
        backend=subject.potential.backend,
        subject=digest,
        machine=speed.machine(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - start, 1),
    )
    return Outcome(certificate, tuple(sections))
