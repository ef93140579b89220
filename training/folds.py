"""``tfdeploy folds``: a task of MatBench as it is reported, mean and standard deviation over the five official folds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
from rich.table import Table

from triforces_deploy.errors import UserError
from triforces_deploy.training.evaluate_properties import evaluate_properties
from triforces_deploy.training.loop import train
from triforces_deploy.training.recipe import Recipe

NUMBERS: tuple[Literal[0, 1, 2, 3, 4], ...] = (0, 1, 2, 3, 4)


@dataclasses.dataclass(frozen=True)
class Spread:
    """One figure over the folds."""

    mean: float
    std: float
    """Of the folds themselves, divisor n, as MatBench gives it."""
    folds: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Folds:
    """Errors on what each fold holds out."""

    out: Path
    finished: int
    """Folds that were trained to the end; figures are of these."""
    errors: dict[str, dict[str, Spread]]
    """By property and figure, in the units of the data; see ``PropertyError`` and ``ClassError``."""
    signal: int | None = None
    """What interrupted them."""


def all_folds(plan: Recipe, out: Path, *, progress: bool = True) -> Folds:
    """Train on four fifths and test on the last, five times, one after the other.

    Each fold is a run of its own in ``out``, with the recipe's seed; one that was stopped goes on, one that has ended is not
    repeated. Where time or a signal ends one, those after it are not begun.

    Raises:
        UserError: a recipe without properties, or for several processes; bad data; a run that cannot go on.
    """
    if not plan.model.properties:
        raise UserError("the recipe has no model.properties, and MatBench's folds are of one; name what the data have")
    if plan.trainer.devices * plan.trainer.nodes > 1:
        raise UserError("folds run in one process; set trainer.devices to 1, or train each with data.fold by itself")
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, dict[str, float]]] = []
    signal = None
    for fold in NUMBERS:
        own = dataclasses.replace(plan, data=dataclasses.replace(plan.data, fold=fold))
        result = train(own, out / f"fold-{fold}", progress=progress)
        if result.status != "finished":
            signal = result.signal
            break
        errors = evaluate_properties(result.best, part="test").model.errors
        rows.append({name: dataclasses.asdict(error) for name, error in errors.items()})
    figures = {
        name: {what: _spread([row[name][what] for row in rows]) for what in kinds} for name, kinds in (rows or [{}])[0].items()
    }
    return Folds(out, len(rows), figures, signal)


def folds_table(result: Folds) -> Table:
    """For the terminal."""
    table = Table(title=f"{result.out}, {result.finished} of {len(NUMBERS)} folds")
    for heading in ("property", "figure", "mean ± std", "folds"):
        table.add_column(heading, justify="left" if heading in ("property", "figure") else "right")
    for name, kinds in result.errors.items():
        for what, spread in kinds.items():
            shown = " ".join(f"{value:.4g}" for value in spread.folds)
            table.add_row(name, what, f"{spread.mean:.4g} ± {spread.std:.2g}", shown)
    return table


def _spread(values: list[float]) -> Spread:
    return Spread(float(np.mean(values)), float(np.std(values)), tuple(values))
