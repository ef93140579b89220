"""``tfdeploy evaluate``: a checkpoint beside another one and beside knowing nothing, in everything that it was fitted to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from triforces_deploy.tables import record
from triforces_deploy.training.evaluate import evaluate, metrics_table
from triforces_deploy.training.evaluate_properties import evaluate_properties, fitted, properties_tables


def compare(
    checkpoint: Path, structures: Path | None, baseline: Path | None, out: Path | None
) -> tuple[list[Table], dict[str, Any]]:
    """Tables for the terminal, and the figures in them by row; by 'energies' and 'properties' first where there are both.

    Args:
        checkpoint: what is measured.
        structures: labelled ones; those that the checkpoint's run held out where none are named.
        baseline: another checkpoint, measured on the same.
        out: also write every value here; those of properties beside it where there are both, as ``.properties.npz``.

    Raises:
        UserError: as for ``evaluate`` and ``evaluate_properties``.
    """
    energies, properties = fitted(checkpoint)
    both = energies and properties
    found: dict[str, tuple[list[Table], dict[str, Any]]] = {}
    if energies:
        found["energies"] = _energies(checkpoint, structures, baseline, out)
    if properties:
        beside = out.with_suffix(".properties.npz") if both and out is not None else out
        found["properties"] = _properties(checkpoint, structures, baseline, beside)
    tables = [table for some, _ in found.values() for table in some]
    records = {what: figures for what, (_, figures) in found.items()}
    return tables, records if both else next(iter(records.values()))


def _energies(
    checkpoint: Path, structures: Path | None, baseline: Path | None, out: Path | None
) -> tuple[list[Table], dict[str, Any]]:
    ours = evaluate(checkpoint, structures, out)
    rows = {"model": ours.model}
    if baseline is not None:
        rows["baseline"] = evaluate(baseline, structures).model
    rows["nothing"] = ours.zero
    title = f"{checkpoint}, {ours.part} structures"
    return [metrics_table(rows, title)], {name: record(metrics) for name, metrics in rows.items()}


def _properties(
    checkpoint: Path, structures: Path | None, baseline: Path | None, out: Path | None
) -> tuple[list[Table], dict[str, Any]]:
    ours = evaluate_properties(checkpoint, structures, out)
    rows = {"model": ours.model}
    if baseline is not None:
        rows["baseline"] = evaluate_properties(baseline, structures).model
    rows["mean of training"] = ours.mean
    title = f"{checkpoint}, {ours.part} structures"
    return properties_tables(rows, title), {name: record(metrics) for name, metrics in rows.items()}
