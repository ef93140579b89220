"""Splits by trajectory, references, and the endless, seeded stream of batches."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor

from triforces_deploy import derivatives
from triforces_deploy.config import ModelConfig
from triforces_deploy.errors import UserError
from triforces_deploy.files import sha256_of
from triforces_deploy.graph import N_NUMBERS
from triforces_deploy.nn.zbl import ZBL
from triforces_deploy.training.structures import Sample, join, read_frames


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which structures, and how they are shared out."""

    files: tuple[str, ...] = ()
    """extxyz or ASE databases; relative paths start at the current folder."""
    validation_files: tuple[str, ...] = ()
    """Structures for validation in files of their own; ``validation`` is then not used."""
    validation: float = 0.1
    """Fraction of the frames of ``files``, taken as whole trajectories, that choose the best checkpoint."""
    test: float = 0.1
    """Fraction, taken likewise, that training never sees."""
    split_seed: int = 0
    rotate: bool = True
    """Turn every training structure at random, since the backbone has no rotation symmetry built in."""


@dataclasses.dataclass(frozen=True)
class Split:
    """Trajectories of each part; what makes a figure on held-out structures honest."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Data:
    """Frames of the three parts, and what must be remembered of them."""

    train: list[Sample]
    validation: list[Sample]
    test: list[Sample]
    split: Split
    files: dict[str, str]
    """Path → sha256."""
    shortest: dict[str, float]
    """:func:`shortest_distances` of ``train``."""
    undeclared: int
    """Frames whose file names no trajectory; they were kept together by file and formula."""


def load(config: DataConfig, model: ModelConfig) -> Data:
    """Read the files and split them.

    Raises:
        UserError: no files, bad structures, or nothing that can be held out without cutting a trajectory in two.
    """
    if not config.files:
        raise UserError("data.files is empty; name at least one extxyz file or ASE database with energies and forces")
    model.numbers()
    paths, own = [Path(f) for f in config.files], [Path(f) for f in config.validation_files]
    frames = read_frames(paths, model.elements, model.cutoff, model.max_neighbours)
    validation = read_frames(own, model.elements, model.cutoff, model.max_neighbours) if own else []
    split = split_by_trajectory(frames, 0.0 if own else config.validation, config.test, config.split_seed)
    parts = {name: set(getattr(split, name)) for name in ("train", "validation", "test")}
    if own:
        shared = sorted({f.trajectory for f in validation} & (parts["train"] | parts["test"]))
        if shared:
            raise UserError(f"data.validation_files share trajectory '{shared[0]}' with data.files; give each file its own")
        split = dataclasses.replace(split, validation=tuple(sorted({f.trajectory for f in validation})))
    train = [f.sample for f in frames if f.trajectory in parts["train"]]
    return Data(
        train=train,
        validation=[f.sample for f in validation or frames if own or f.trajectory in parts["validation"]],
        test=[f.sample for f in frames if f.trajectory in parts["test"]],
        split=split,
        files={str(p): sha256_of(p) for p in (*paths, *own)},
        shortest=shortest_distances(train),
        undeclared=sum(not f.declared for f in (*frames, *validation)),
    )


class Grouped(Protocol):
    """Something that belongs to a trajectory."""

    @property
    def trajectory(self) -> str: ...


def split_by_trajectory(frames: Sequence[Grouped], validation: float, test: float, seed: int) -> Split:
    """Deal whole trajectories, in random order, until each part has its fraction of the frames.

    Raises:
        UserError: fractions that leave nothing to train on, or fewer trajectories than parts.
    """
    if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
        raise UserError(f"data.validation = {validation} and data.test = {test}: expected fractions that sum to less than 1")
    counts: dict[str, int] = {}
    for frame in frames:
        counts[frame.trajectory] = counts.get(frame.trajectory, 0) + 1
    needed = 1 + (validation > 0) + (test > 0)
    if len(counts) < needed:
        raise UserError(
            f"data.files hold {len(counts)} trajectories, {needed} are needed to hold some out; set info['trajectory'] of each "
            "frame to the run it comes from, add runs, or name validation_files and set test to 0"
        )
    names = sorted(counts)
    order = [names[k] for k in np.random.default_rng(seed).permutation(len(names))]
    parts: dict[str, list[str]] = {"test": [], "validation": []}
    for part, fraction, left_over in (("test", test, 1 + (validation > 0)), ("validation", validation, 1)):
        while fraction > 0 and len(order) > left_over and sum(counts[n] for n in parts[part]) < fraction * len(frames):
            parts[part].append(order.pop())
    return Split(tuple(sorted(order)), tuple(sorted(parts["validation"])), tuple(sorted(parts["test"])))


def fit_references(samples: Sequence[Sample]) -> Tensor:
    """Energies of free elements, (119,) float64 eV, least squares of energy per atom on element fractions.

    Where the data cannot tell elements apart (a compound of fixed composition) the solution of smallest norm is taken:
    it fits just as well and shares the energy evenly.
    """
    counts = torch.cat([s.graph.composition for s in samples]).numpy()  # (G, 119)
    energy = torch.cat([s.energy for s in samples]).numpy()
    n_atoms = counts.sum(axis=1)
    solution, *_ = np.linalg.lstsq(counts / n_atoms[:, None], energy / n_atoms, rcond=1e-10)
    references = np.zeros(N_NUMBERS)
    seen = counts.sum(axis=0) > 0
    references[seen] = solution[seen]
    return torch.from_numpy(references)


def elements_seen(samples: Sequence[Sample]) -> list[str]:
    """Chemical symbols that occur in the samples, by atomic number."""
    counts = torch.cat([s.graph.composition for s in samples]).sum(0)
    return [chemical_symbols[z] for z in torch.nonzero(counts)[:, 0].tolist()]


def shortest_distances(samples: Sequence[Sample]) -> dict[str, float]:
    """Å. The shortest distance of each pair of elements, such as 'Si-Ge' with the lighter one first, that occurs."""
    shortest = np.full((N_NUMBERS, N_NUMBERS), np.inf)
    for sample in samples:
        numbers = sample.graph.numbers[sample.graph.edge_index].sort(dim=0).values.numpy()  # (2, E)
        np.minimum.at(shortest, (numbers[0], numbers[1]), torch.linalg.vector_norm(sample.graph.edge_vector, dim=1).numpy())
    pairs = np.argwhere(np.isfinite(shortest)).tolist()
    return {f"{chemical_symbols[a]}-{chemical_symbols[b]}": float(shortest[a, b]) for a, b in pairs}


def fit_scale(samples: Sequence[Sample]) -> Tensor:
    """Root mean square of the force components times 1 Å, () float64 eV; 1 where all forces vanish.

    Forces outnumber energies by 3N to one and carry most of the loss. With this unit a network whose output changes by
    about 1 per Å, which is how a fresh one behaves, has forces of the right size from the first step.
    """
    forces = torch.cat([s.forces for s in samples])
    scale = forces.square().mean().sqrt()
    return scale if float(scale) > 1e-8 else torch.ones((), dtype=torch.float64)


def less_repulsion(samples: Sequence[Sample]) -> list[Sample]:
    """Labels without what a model with ``zbl`` adds itself, so that references and scale are those of its network."""
    repulsion, left = ZBL(), []
    for sample in samples:
        energies, edge_forces = derivatives.evaluate(repulsion, sample.graph)
        energy = sample.energy - derivatives.energy(energies, sample.graph)
        left.append(sample._replace(energy=energy, forces=sample.forces - derivatives.forces(edge_forces, sample.graph)))
    return left


def batch_indices(n_samples: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Which structures make up the batch of a step: a function of its arguments alone, so any step can be resumed at.

    Structures come in a new random order in each pass over the data; a batch may straddle two passes.
    """
    chosen = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, k = divmod(position, n_samples)
        chosen.append(int(_order(n_samples, seed, epoch)[k]))
    return chosen


@functools.lru_cache(maxsize=2)
def _order(n_samples: int, seed: int, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.random.default_rng([seed, 1, epoch]).permutation(n_samples)


def batches(
    samples: Sequence[Sample], batch_size: int, seed: int, steps: range, rotate: bool, rank: int = 0, ranks: int = 1
) -> Iterator[Sample]:
    """The training batches of some steps; of several ranks each gets every ``ranks``-th structure of a batch."""
    for step in steps:
        chosen = [samples[k] for k in batch_indices(len(samples), batch_size, seed, step)]
        if rotate:
            turns = random_rotations(len(chosen), np.random.default_rng([seed, 2, step]))
            chosen = [rotated(s, r) for s, r in zip(chosen, turns, strict=True)]
        yield join(chosen[rank::ranks])


def random_rotations(n: int, rng: np.random.Generator) -> Tensor:
    """(n, 3, 3) float64, uniform over all rotations and reflections (Haar measure of O(3)).

    The orthogonal factor of a Gaussian matrix is uniform once the signs of the triangular factor are fixed.
    """
    q, r = np.linalg.qr(rng.normal(size=(n, 3, 3)))
    return torch.from_numpy(q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :])


def rotated(sample: Sample, turn: Tensor) -> Sample:
    """One structure turned, x → R x, with its labels; energy stays."""
    graph = sample.graph._replace(edge_vector=sample.graph.edge_vector @ turn.T, cell=sample.graph.cell @ turn.T)
    return Sample(graph, sample.energy, sample.forces @ turn.T, turn @ sample.stress @ turn.T)
