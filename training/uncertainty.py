"""How uncertain the energy of each atom is, from the last layer alone: a Gaussian posterior of its weights.

The energy of a structure is linear in the last layer, E_s = Σ_i w·φ_i + …, with φ_i what that layer reads of atom i. With
Φ_s = Σ_{i∈s} φ_i and N_s atoms, least squares on training energies whose errors grow like √N_s, and a Gaussian prior,
leave for w the covariance

    α² (Σ_s Φ_s Φ_sᵀ / N_s + λ)⁻¹

so that σ_i² = α² φ_iᵀ (…)⁻¹ φ_i is the variance of an atom's energy and Φ_s in place of φ_i gives that of a structure. The
features are taken as they are. λ and α are those under which the errors on validation structures are most likely. This is
the prediction rigidity of Bigi, Chong, Ceriotti and Grasselli (2024), here with forces left aside.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triforces_deploy import checkpoint, derivatives
from triforces_deploy.errors import UserError
from triforces_deploy.graph import Graph, collate
from triforces_deploy.model import Model
from triforces_deploy.nn.scatter import scatter_sum
from triforces_deploy.training.evaluate import chosen, training_files
from triforces_deploy.training.reading import read_frames
from triforces_deploy.training.splitting import split_by_trajectory
from triforces_deploy.training.structures import Frame, Sample

FEWEST = 4
"""Structures for calibration; a scale of fewer errors means nothing."""
HELD_OUT = 0.2
"""Of --data, by trajectory, for calibration."""
STRENGTHS = tuple(10.0**k for k in range(-8, 1))
"""λ in units of the mean square of the features of a structure."""


@dataclasses.dataclass(frozen=True)
class Uncertainty:
    """What was calibrated, and how well it holds."""

    checkpoint: Path
    structures: int
    """Whose features make the covariance."""
    calibrated_on: int
    """Structures that training did not fit."""
    strength: float
    """λ in units of the mean square of the features of a structure."""
    energy_rmse: float
    """meV/atom, on the structures of the calibration."""
    energy_std: float
    """meV/atom. What was predicted for it, as a root mean square."""
    within_one: float
    """Percent of those structures whose error is below one standard deviation; 68 of a Gaussian."""
    within_two: float
    """The same for two; 95 of a Gaussian."""

    def line(self) -> str:
        """In one line."""
        return (
            f"covariance from {self.structures} structures, calibrated on {self.calibrated_on} of validation, of whose errors "
            f"{self.within_one:.0f} % are below one standard deviation"
        )


def add_uncertainty(path: Path, files: Sequence[Path] = (), out: Path | None = None, batch_size: int = 16) -> Uncertainty:
    """Give a checkpoint the covariance of its last layer.

    Args:
        path: the checkpoint.
        files: labelled structures, of which a fifth of the trajectories is kept for calibration; without them the training
            and validation parts of the files that the checkpoint was trained from.
        out: where the new checkpoint goes; None replaces the old one.
        batch_size: structures at a time.

    Raises:
        UserError: a bad checkpoint or file, a readout that is no sum over atoms, too few structures.
    """
    model, provenance = checkpoint.load_fitted(path)
    if model.config.readout != "sum":
        raise UserError(f"{path} has readout '{model.config.readout}'; atoms have an uncertainty only where it is 'sum'")
    train, validation = _parts(model, provenance, files, path)
    if len(validation) < FEWEST:
        raise UserError(f"{len(validation)} structures to calibrate on, at least {FEWEST} are needed; name more with --data")
    exact = copy.deepcopy(model)
    exact.set_network_dtype(torch.float64)
    sums, errors = _features(exact, validation, batch_size), _errors(exact, validation, batch_size)
    spread, strength = calibrated(_features(exact, train, batch_size), _sizes(train), sums, errors)
    sigma, n_atoms = (sums @ spread).square().sum(1).sqrt(), _sizes(validation)
    result = Uncertainty(
        checkpoint=out or path,
        structures=len(train),
        calibrated_on=len(validation),
        strength=strength,
        energy_rmse=1000 * float((errors / n_atoms).square().mean().sqrt()),
        energy_std=1000 * float((sigma / n_atoms).square().mean().sqrt()),
        within_one=100 * float((errors.abs() < sigma).double().mean()),
        within_two=100 * float((errors.abs() < 2 * sigma).double().mean()),
    )
    checkpoint.save(out or path, with_spread(model, spread), {**provenance, "uncertainty": result.line()})
    return result


def calibrated(rows: Tensor, n_atoms: Tensor, sums: Tensor, errors: Tensor) -> tuple[Tensor, float]:
    """The matrix R of :attr:`~triforces_deploy.model.Model.spread`, and λ.

    Args:
        rows: (S, F) features of the training structures, added up over their atoms.
        n_atoms: (S,) of them.
        sums: (V, F) those of the validation structures.
        errors: (V,) eV. Energies predicted for them less their labels.
    """
    matrix = rows.T @ (rows / n_atoms[:, None])
    unit = matrix.diagonal().mean()
    identity = torch.eye(len(matrix), dtype=matrix.dtype)
    best, found = -math.inf, None
    for strength in STRENGTHS:
        lower, failed = torch.linalg.cholesky_ex(matrix + strength * unit * identity)
        if bool(failed):
            continue
        root = torch.linalg.solve_triangular(lower, identity, upper=False).T  # root rootᵀ is the inverse
        variances = (sums @ root).square().sum(1)
        scale = (errors.square() / variances).mean()
        likelihood = -0.5 * float((variances.log() + scale.log()).mean())
        if math.isfinite(likelihood) and likelihood > best:
            best, found = likelihood, (scale.sqrt() * root, strength)
    if found is None:
        raise UserError("the energies of the validation structures are met exactly or are not finite; give other structures")
    return found


def with_spread(model: Model, spread: Tensor) -> Model:
    """The same model, knowing the covariance R Rᵀ of its last layer."""
    new = Model(dataclasses.replace(model.config, uncertainty=True))
    new.set_network_dtype(model.head.dtype)
    new.load_state_dict({**model.state_dict(), "spread": spread})
    return new.eval().requires_grad_(False)


def _parts(model: Model, provenance: dict[str, Any], files: Sequence[Path], path: Path) -> tuple[list[Sample], list[Sample]]:
    config = model.config
    frames = read_frames(files or training_files(provenance, path), config.elements, config.cutoff, config.max_neighbours)
    if not files:
        train, validation = (chosen(frames, provenance, part, path) for part in ("train", "validation"))
        return _samples(train), _samples(validation)
    split = split_by_trajectory(Counter(f.trajectory for f in frames), HELD_OUT, 0.0, seed=0)
    parts = ([f for f in frames if f.trajectory in set(names)] for names in (split.train, split.validation))
    train, validation = parts
    return _samples(train), _samples(validation)


def _samples(frames: Sequence[Frame]) -> list[Sample]:
    return [frame.sample for frame in frames]


def _sizes(samples: Sequence[Sample]) -> Tensor:
    """(S,) float64. Atoms."""
    return torch.cat([s.graph.composition.sum(dim=1) for s in samples])


@torch.no_grad()
def _features(model: Model, samples: Sequence[Sample], batch_size: int) -> Tensor:
    """(S, F) float64. What the last layer reads, added up over the atoms of each structure."""
    sums = []
    for graph in _graphs(samples, batch_size):
        features = model.head.features(list(model.embeddings(graph).values()))
        sums.append(scatter_sum(features, graph.batch, graph.composition.shape[0]))
    return torch.cat(sums)


@torch.no_grad()
def _errors(model: Model, samples: Sequence[Sample], batch_size: int) -> Tensor:
    """(S,) eV. Predicted energies less the labels."""
    found = [derivatives.energy(model(graph), graph) for graph in _graphs(samples, batch_size)]
    return torch.cat(found) - torch.cat([s.energy for s in samples])


def _graphs(samples: Sequence[Sample], batch_size: int) -> Iterator[Graph]:
    for start in range(0, len(samples), batch_size):
        yield collate([s.graph for s in samples[start : start + batch_size]])
