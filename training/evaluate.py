"""How far a checkpoint is from labels, beside what predicting nothing would score."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from triforces_deploy import checkpoint, derivatives
from triforces_deploy.errors import UserError
from triforces_deploy.files import existing, replacing, sha256_of
from triforces_deploy.model import Model
from triforces_deploy.training.objective import Metrics, Prediction, Tally, predict
from triforces_deploy.training.reading import read_frames
from triforces_deploy.training.structures import Frame, Sample, join

Part = Literal["all", "train", "validation", "test"]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Errors of a model, and of the empty prediction: energy from the element references alone, forces and stress zero."""

    checkpoint: Path
    part: Part
    model: Metrics
    zero: Metrics
    values: Path | None = None
    """Where the numbers behind a parity plot were written."""


@dataclasses.dataclass(frozen=True)
class Values:
    """Labels and predictions, for parity plots; S structures, A atoms in all. The last axis is label, prediction."""

    frames: tuple[str, ...]
    """(S,) ``file@index``."""
    n_atoms: NDArray[np.int64]
    """(S,)"""
    energy: NDArray[np.float64]
    """(S, 2) eV/atom."""
    forces: NDArray[np.float64]
    """(A, 3, 2) eV/Å."""
    stress: NDArray[np.float64]
    """(S, 3, 3, 2) eV/Å³; the label is NaN where there is none."""

    def save(self, path: Path) -> None:
        """Write the arrays under their names, numpy's ``.npz``."""
        with replacing(path) as part, part.open("wb") as stream:
            np.savez_compressed(stream, **{**vars(self), "frames": np.array(self.frames)})


def evaluate(
    path: Path, structures: Path | None = None, out: Path | None = None, *, part: Part | None = None, batch_size: int = 16
) -> Evaluation:
    """Compare a checkpoint with labelled structures.

    Args:
        path: the checkpoint.
        structures: a file; the files that it was trained from where none is named.
        out: also write the :class:`Values` here.
        part: trajectories to keep: the 'test', 'validation' or 'train' part of the checkpoint's own split, or 'all'. Where
            not given, 'all' of a named file and else 'test'.
        batch_size: structures at a time.

    Raises:
        UserError: a bad checkpoint or file, data that changed since training, or no structure in that part.
    """
    kept: Part = part or ("test" if structures is None else "all")
    model, provenance = checkpoint.load_fitted(path)
    files = training_files(provenance, path) if structures is None else [structures]
    config = model.config
    frames = read_frames(files, config.elements, config.cutoff, config.max_neighbours, config.properties)
    frames = chosen(frames, provenance, kept, path)
    tally, empty = Tally(), Tally()
    done = []
    for start in range(0, len(frames), batch_size):
        sample = join([f.sample for f in frames[start : start + batch_size]])
        prediction = predict(model, sample.graph)
        tally.add(prediction, sample)
        empty.add(_nothing(model, sample), sample)
        done.append((sample, prediction))
    if out is not None:
        _collected(frames, done).save(out)
    return Evaluation(path, kept, tally.metrics(), empty.metrics(), out)


def metrics_table(rows: dict[str, Metrics], title: str) -> Table:
    """Figures of several models side by side, a row each."""
    table = Table(title=title)
    table.add_column("")
    for heading in ("energy RMSE / MAE\nmeV/atom", "force RMSE / MAE\nmeV/Å", "of RMS force\n%", "stress RMSE / MAE\nmeV/Å³"):
        table.add_column(heading, justify="right")
    for name, m in rows.items():
        stress = "–" if m.stress_rmse is None else f"{m.stress_rmse:.3g} / {m.stress_mae:.3g}"
        table.add_row(
            name, f"{m.energy_rmse:.3g} / {m.energy_mae:.3g}", f"{m.forces_rmse:.4g} / {m.forces_mae:.4g}",
            f"{m.forces_percent:.1f}", stress,
        )  # fmt: skip
    return table


def training_files(provenance: dict[str, Any], path: Path) -> list[Path]:
    """What the checkpoint at ``path`` was trained from; UserError where it does not say, or where a file has changed."""
    files: dict[str, str] = provenance.get("files", {})
    if not files:
        raise UserError(f"{path} does not say what it was trained on; name a file of labelled structures")
    for name, digest in files.items():
        if (
            sha256_of(existing(Path(name), f"what {path} was trained from; or name another file of labelled structures"))
            != digest
        ):
            raise UserError(f"{name} has changed since {path} was trained from it; what was held out is unknown")
    return [Path(name) for name in files]


def chosen(frames: list[Frame], provenance: dict[str, Any], part: Part, path: Path) -> list[Frame]:
    """Those of a part of the checkpoint's own split, by trajectory; UserError where there are none."""
    if part == "all":
        return frames
    split = provenance.get("split")
    if not isinstance(split, dict):
        raise UserError(f"{path} carries no split; evaluate part 'all'")
    kept = [f for f in frames if f.trajectory in set(split[part])]
    if not kept:
        raise UserError(
            f"no structure belongs to the {part} part of {path}; evaluate part 'all', or name the files of training"
        )
    return kept


def _nothing(model: Model, sample: Sample) -> Prediction:
    """What references alone say."""
    graph = sample.graph
    energy = derivatives.energy(model.references[graph.numbers], graph)
    return Prediction(energy, torch.zeros_like(sample.forces), torch.zeros_like(sample.stress))


def _collected(frames: list[Frame], done: list[tuple[Sample, Prediction]]) -> Values:
    def both(label: list[Tensor], prediction: list[Tensor]) -> NDArray[np.float64]:
        return np.stack([torch.cat(label).numpy(), torch.cat(prediction).numpy()], axis=-1)

    n_atoms = torch.cat([s.graph.composition.sum(dim=1) for s, _ in done]).numpy()
    return Values(
        frames=tuple(f.name for f in frames),
        n_atoms=n_atoms.astype(np.int64),
        energy=both([s.energy for s, _ in done], [p.energy for _, p in done]) / n_atoms[:, None],
        forces=both([s.forces for s, _ in done], [p.forces for _, p in done]),
        stress=both([s.stress for s, _ in done], [p.stress for _, p in done]),
    )
