"""How results look in a terminal, and as JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:  # commands that print other things do without torch
    from triforces_deploy.artifact import Artifact, Metadata, Parity
    from triforces_deploy.certificate import Certificate
    from triforces_deploy.config import ModelConfig
    from triforces_deploy.model import Model
    from triforces_deploy.payloads.base import PayloadInfo


def console() -> Console:
    """Standard output; wide enough that a log file keeps its lines."""
    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)


@contextmanager
def status(title: str, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """A spinner on standard error; call what it gives with each new stage."""
    err = Console(stderr=True, quiet=quiet)
    with err.status(title) as spinner:

        def report(line: str) -> None:
            spinner.update(line)
            if not err.is_terminal:
                err.print(line, highlight=False)

        yield report


def record(result: object) -> dict[str, Any]:
    """A dataclass as plain data."""
    return dataclasses.asdict(cast(Any, result))


def record_table(title: str, result: object) -> Table:
    """A dataclass as two columns; nested ones with dotted names."""
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in _flat(record(result), ""):
        table.add_row(name, _text(value))
    return table


def parity_table(rows: Iterable[Parity]) -> Table:
    """Back ends against their reference."""
    table = Table(title="Parity, relative, largest over the probe structures", title_justify="left")
    rows = list(rows)
    quantities = ["energy", "forces", "stress", *(["uncertainty"] if any(r.uncertainty is not None for r in rows) else [])]
    for heading in ("back end", "against", "structures", *quantities, "allowed"):
        table.add_column(heading, justify="left" if heading in ("back end", "against", "structures") else "right")
    for r in rows:
        given = record(r)
        numbers = ["–" if given[q] is None else f"{given[q]:.1e}" for q in (*quantities, "tolerance")]
        table.add_row(r.backend, r.reference, str(r.structures), *numbers)
    return table


def certificate_tables(certificate: Certificate, path: Path) -> list[Table]:
    """Every check of a certificate, then what the file may be used for."""
    table = Table(title=f"{path}, physics of its {certificate.backend} form", title_justify="left")
    for heading, justify in (
        ("family", "left"),
        ("check", "left"),
        ("verdict", "left"),
        ("value", "right"),
        ("allowed", "right"),
    ):
        table.add_column(heading, justify=cast(Any, justify))
    colours = {"pass": "green", "warn": "yellow", "fail": "red", "skipped": "dim"}
    for c in certificate.checks:
        value, allowed = ("–" if x is None else f"{x:.2g} {c.unit}".strip() for x in (c.value, c.threshold))
        table.add_row(c.family, c.name, f"[{colours[c.verdict]}]{c.verdict}[/]", value, allowed)
    words = Table(show_header=False)
    words.add_row("verdict", certificate.line())
    words.add_row("use", certificate.use)
    words.add_row("not for", certificate.not_for)
    return [table, words]


def artifact_tables(artifact: Artifact, path: Path) -> list[Table]:
    """What `tfdeploy info` prints."""
    from triforces_deploy.trust import is_trusted

    m = artifact.metadata
    trusted = is_trusted(m)
    table = Table(title=str(path), show_header=False, title_justify="left")
    parameters = sum(t.numel() for t in artifact.weights.values())
    rows = {
        "elements": " ".join(m.facts.elements),
        "model": _model(m.config, parameters),
        "cutoff": f"{m.facts.cutoff} Å; receptive field {m.facts.receptive_field} Å",
        "exchanges": f"{m.facts.n_exchanges} forward, {m.facts.n_exchanges} backward per evaluation on several ranks"
        + (f", of {' + '.join(map(str, m.facts.exchange_widths))} numbers per atom" if m.facts.exchange_widths else ""),
        "precision": f"network {m.facts.precision}, edge vectors and sums float64",
        "units": f"LAMMPS {m.facts.units}: eV, Å",
        "policies": "\n".join(m.facts.policies),
        "payloads": "\n".join(_payload(p, trusted) for p in m.payloads) or "none, runs eager",
        "made": f"{m.created}, " + ", ".join(f"{k} {v}" for k, v in m.versions.items()),
        "trained from": f"{m.provenance['checkpoint']} sha256 {m.provenance['checkpoint_sha256'][:16]}…",
        "weights": f"sha256 {m.weights_sha256[:16]}…",
        "certificate": _certificate(m),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return [table, parity_table(m.parity)]


def checkpoint_tables(model: Model, provenance: dict[str, Any], path: Path) -> list[Table]:
    """What `tfdeploy info` prints of a checkpoint: what it is, where it comes from, and how well it did when it was saved."""
    facts = model.facts()
    table = Table(title=f"{path}, a checkpoint", show_header=False, title_justify="left")
    rows = {
        "elements": " ".join(facts.elements),
        "model": _model(model.config, sum(t.numel() for t in model.parameters())),
        "backbone": ", ".join(f"{k} {v}" for k, v in model.config.backbone.options.items()) or "as the recipe `paper` has it",
        "cutoff": f"{facts.cutoff} Å; receptive field {facts.receptive_field} Å",
        "precision": f"network {facts.precision}",
        "policies": "\n".join(facts.policies) or "none",
        "comes from": _origin(model, provenance),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    validation = provenance.get("validation")
    return [table] if validation is None else [table, _validation(validation)]


def _origin(model: Model, provenance: dict[str, Any]) -> str:
    from triforces_deploy.checkpoint import fits_energies

    if "imported" in provenance:
        found = provenance["imported"]
        return f"{found['file']} of {found['kind']}, sha256 {found['sha256'][:16]}…"
    if "step" not in provenance:
        return "unknown"
    if "pretrained" in provenance:
        what = f"pretrained without labels ({', '.join(provenance['pretrained'])}); `tfdeploy train finetune --init` goes on"
    else:
        names = [p.name for p in model.config.properties]
        energies = ["energies, forces, stress"] if not names or fits_energies(provenance) else []
        what = f"fitted to {', '.join([*energies, *names])}"
    start = provenance.get("init", {}).get("checkpoint")
    return f"{what}; step {provenance['step']}" + (f", from {start}" if start else "")


def _validation(found: dict[str, Any]) -> Table:
    """Numbers of the last validation before it was saved."""
    table = Table(title="Validation; meV, Å", show_header=False, title_justify="left")
    for name, value in _flat(found, ""):
        table.add_row(name, _text(value))
    return table


def _model(config: ModelConfig, parameters: int) -> str:
    streams = [name for name in ("composition", "structure") if getattr(config, name) is not None]
    return f"{config.backbone.name} + {' + '.join(streams) or 'no streams'}, {parameters:,} parameters"


def _payload(info: PayloadInfo, trusted: bool) -> str:
    from triforces_deploy.verdicts import judge

    verdict = judge(info, trusted)
    says = {"run": "runs here", "rebuild": "rebuilt here at the first use", "leave out": "does not run here"}
    why = f": {verdict.reason}" if verdict.reason else ""
    return f"{info.backend} for {info.target}, torch {info.torch}; {says[verdict.action]}{why}"


def _certificate(metadata: Metadata) -> str:
    from triforces_deploy.certificate import subject

    found = metadata.certificate
    if found is None:
        return "none; `tfdeploy certify` makes one"
    changed = "" if found.subject == subject(metadata) else "; the file has changed since, run `tfdeploy certify` again"
    return found.line() + changed


def dump(data: object) -> str:
    """JSON; paths become text and NaN becomes null."""
    return json.dumps(_plain(data), indent=1)


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and value != value:
        return None
    return str(value) if isinstance(value, Path) else value


def _flat(data: dict[str, Any], prefix: str) -> Iterator[tuple[str, object]]:
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}".replace("_", " "), value


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)
