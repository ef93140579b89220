"""How far a model of properties is from labels, beside what the mean of the training labels would score."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from triforces_deploy import checkpoint
from triforces_deploy.errors import UserError
from triforces_deploy.files import replacing
from triforces_deploy.model import Model
from triforces_deploy.properties import isotropic
from triforces_deploy.training.classification import ClassError, probability
from triforces_deploy.training.evaluate import Part, chosen, training_files
from triforces_deploy.training.properties import PropertyMetrics, PropertyTally
from triforces_deploy.training.property_labels import per
from triforces_deploy.training.reading import read_frames
from triforces_deploy.training.structures import Sample, join


@dataclasses.dataclass(frozen=True)
class PropertyEvaluation:
    """Errors of a model, and of the mean of the labels that it was trained on."""

    checkpoint: Path
    part: Part
    model: PropertyMetrics
    mean: PropertyMetrics


def fitted(path: Path) -> tuple[bool, bool]:
    """Whether the checkpoint at ``path`` was fitted to energies, and whether to properties."""
    model, provenance = checkpoint.load(path)
    has = model.properties is not None
    return not has or checkpoint.fits_energies(provenance), has


def evaluate_properties(
    path: Path, structures: Path | None = None, out: Path | None = None, *, part: Part | None = None, batch_size: int = 16
) -> PropertyEvaluation:
    """Compare a checkpoint with labelled structures.

    Args:
        path: the checkpoint.
        structures: a file; the files that it was trained from where none is named.
        out: also write labels and predictions here, numpy's ``.npz``: of each property, as ``target.NAME``, (R, K, 2) for the R
            structures or atoms that the ``frames`` have, of K components; the prediction of yes or no is its probability.
        part: as for :func:`~triforces_deploy.training.evaluate.evaluate`.
        batch_size: structures at a time.

    Raises:
        UserError: a bad checkpoint or file, one without properties, data that changed since training, or no structure in that
            part.
    """
    kept: Part = part or ("test" if structures is None else "all")
    model, provenance = checkpoint.load(path)
    config = model.config
    if not config.properties:
        raise UserError(f"{path} has no properties (model.properties); compare it with models that have none either")
    files = training_files(provenance, path) if structures is None else [structures]
    frames = read_frames(files, config.elements, config.cutoff, config.max_neighbours, config.properties)
    frames = chosen(frames, provenance, kept, path)
    tally, mean = PropertyTally(config.properties), PropertyTally(config.properties)
    pairs: dict[str, list[Tensor]] = {p.name: [] for p in config.properties}
    binary = {p.name for p in config.properties if p.kind == "binary"}
    for start in range(0, len(frames), batch_size):
        sample = join([f.sample for f in frames[start : start + batch_size]])
        with torch.no_grad():
            found = model.properties_of(sample.graph)
        tally.add(found, sample)
        mean.add(_means(model, sample), sample)
        for name, values in pairs.items():
            said = probability(found[name]) if name in binary else found[name]
            values.append(torch.stack([sample.targets[name], said], dim=-1))
    if out is not None:
        arrays: dict[str, Any] = {f"target.{name}": torch.cat(values).numpy() for name, values in pairs.items()}
        with replacing(out) as half, half.open("wb") as stream:
            np.savez_compressed(stream, **{"frames": np.array([f.name for f in frames]), **arrays})
    return PropertyEvaluation(path, kept, tally.metrics(), mean.metrics())


def properties_tables(rows: dict[str, PropertyMetrics], title: str) -> list[Table]:
    """Figures of several models, a row for each and each property: numbers in the units of the data, then what is yes or no."""
    numbers, classes = Table(title=title), Table(title=title)
    for table, headings in (
        (numbers, ("MAE", "RMSE", "R²", "labels")),
        (classes, ("ROC-AUC", "balanced\naccuracy", "F1", "accuracy", "labels")),
    ):
        table.add_column("")
        table.add_column("property")
        for heading in headings:
            table.add_column(heading, justify="right")
    for model, metrics in rows.items():
        for name, e in metrics.errors.items():
            if isinstance(e, ClassError):
                figures = (e.roc_auc, e.balanced_accuracy, e.f1, e.accuracy)
                classes.add_row(model, name, *(f"{figure:.4f}" for figure in figures), f"{e.labels:,}")
            else:
                numbers.add_row(model, name, f"{e.mae:.4g}", f"{e.rmse:.4g}", f"{e.r2:.3f}", f"{e.labels:,}")
    return [table for table in (numbers, classes) if table.row_count]


def _means(model: Model, sample: Sample) -> dict[str, Tensor]:
    """What the means of the training labels say."""
    assert model.properties is not None
    found = {}
    for config, mean in zip(model.config.properties, model.properties.mean, strict=True):
        found[config.name] = per(config, sample)[:, None] * mean * isotropic(config).to(mean)
    return found
