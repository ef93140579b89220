"""What a file's physics was found to be: checks with their numbers and bounds, and what the file may be used for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any, Literal

from triforces_deploy.config import as_dict

Verdict = Literal["pass", "warn", "fail", "skipped"]


@dataclasses.dataclass(frozen=True)
class Check:
    """One question to the file, and its answer."""

    family: str
    """What it is about: a heading of the page."""
    name: str
    verdict: Verdict
    """'skipped' where this machine cannot ask."""
    value: float | None
    """None where there is no finite number."""
    unit: str
    """Of value and threshold; empty for a ratio."""
    threshold: float | None
    """Largest value that passes."""
    sentence: str
    """What the number means, in plain words."""


@dataclasses.dataclass(frozen=True)
class Certificate:
    """All checks of one file, stored inside it."""

    verdict: Verdict
    """The worst of the checks."""
    checks: tuple[Check, ...]
    use: str
    """What the file may be used for."""
    not_for: str
    backend: str
    """Form whose physics was measured; parity ties the others to it."""
    subject: str
    """:func:`subject` of the metadata that were certified."""
    machine: dict[str, Any]
    """Kind of machine and library versions; nothing that names the machine itself."""
    created: str
    """UTC, ISO 8601."""
    seconds: float

    def line(self) -> str:
        """The verdict in one line."""
        counts = ", ".join(f"{n} {v}" for v in ("fail", "warn", "pass") if (n := self.count(v)))
        return f"{self.verdict} ({counts}), {self.created[:10]}"

    def count(self, verdict: Verdict) -> int:
        """How many checks have this verdict."""
        return sum(check.verdict == verdict for check in self.checks)


def subject(metadata: object) -> str:
    """Digest of everything that metadata say, the certificate excepted: the hashes of weights and payloads are in it."""
    data = as_dict(metadata)
    data.pop("certificate", None)
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
