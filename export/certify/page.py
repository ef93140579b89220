"""The page of a certificate: the verdict, what the file is for, every check with its number, and the curves."""

from __future__ import annotations

import html
import tempfile
from pathlib import Path

from triforces_deploy import page, pictures
from triforces_deploy.certificate import Check

from .base import Curve
from .certifying import Outcome

STYLE = """td{vertical-align:top}td:last-child,th:last-child{text-align:left;font-size:.92em;color:#555}
.verdict{font-weight:600;padding:0 .5em;border-radius:.3em;color:#fff}.pass{background:#3d8b7d}.warn{background:#c98a1b}
.fail{background:#c0392b}.skipped{background:#999}"""


def write(outcome: Outcome, name: str, path: Path) -> Path:
    """Write the page.

    Args:
        outcome: of :func:`.certifying.certify`.
        name: of the file.
        path: where to.
    """
    c = outcome.certificate
    sections = [
        f"<h1>{html.escape(name)} {_badge(c.verdict)}</h1>",
        f"<p><b>Use:</b> {html.escape(c.use)}.</p><p><b>Not for:</b> {html.escape(c.not_for)}.</p>",
        f"<p>Measured on the {html.escape(c.backend)} form, {c.created}, in {c.seconds:.0f} s.</p>",
        "<h2>Findings</h2>",
        *_findings(c.checks),
    ]
    with tempfile.TemporaryDirectory(prefix="tfdeploy-") as folder:
        for section in outcome.sections:
            for family in dict.fromkeys(check.family for check in section.checks):
                sections.append(f"<h2>{html.escape(family)}</h2>")
                sections.append(_table([check for check in section.checks if check.family == family]))
            for k, curve in enumerate(section.curves):
                sections.append(page.image(_picture(curve, Path(folder) / f"{k}.png")))
    rows = [(html.escape(k.replace("_", " ")), html.escape(str(v))) for k, v in c.machine.items()]
    sections += ["<h2>This machine</h2>", page.table(("", ""), rows)]
    return page.write_page(path, f"Certificate of {name}", sections, STYLE)


def _findings(checks: tuple[Check, ...]) -> list[str]:
    found = [check for verdict in ("fail", "warn") for check in checks if check.verdict == verdict]
    if not found:
        return ["<p>None: every check passes.</p>"]
    lines = "".join(
        f"<li>{_badge(c.verdict)} <b>{html.escape(f'{c.family}, {c.name}')}</b>: {_number(c.value, c.unit)}. "
        f"{html.escape(c.sentence)}</li>"
        for c in found
    )
    return [f"<ul>{lines}</ul>"]


def _table(checks: list[Check]) -> str:
    rows = [
        (
            html.escape(c.name),
            _badge(c.verdict),
            _number(c.value, c.unit),
            _number(c.threshold, c.unit),
            html.escape(c.sentence),
        )
        for c in checks
    ]
    return page.table(("check", "verdict", "value", "allowed", ""), rows)


def _number(value: float | None, unit: str) -> str:
    return "–" if value is None else html.escape(f"{value:.3g} {unit}".strip())


def _badge(verdict: str) -> str:
    return f'<span class="verdict {verdict}">{verdict}</span>'


def _picture(curve: Curve, path: Path) -> Path:
    return pictures.curves(
        curve.y, curve.x, (curve.title, curve.x_label, curve.y_label), path, marks=curve.marks, limit=curve.y_limit
    )
