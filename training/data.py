"""Which structures are trained on, validated and tested, and what the labels say about references and scale."""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray
from torch import Tensor

from triforces_deploy import derivatives
from triforces_deploy.config import ModelConfig
from triforces_deploy.errors import UserError
from triforces_deploy.files import sha256_of
from triforces_deploy.graph import N_NUMBERS, Graph
from triforces_deploy.training.packed import Packed, index_file
from triforces_deploy.training.reading import read_packed
from triforces_deploy.training.splitting import Split, split_by_fold, split_by_trajectory
from triforces_deploy.training.structures import Sample, Samples, join

Unit = Literal["structures", "atoms", "edges"]
"""What the size of a batch counts."""

MOST = 20_000
"""Structures, evenly spaced, from which references, scale and shortest distances are found."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which structures, and how they are shared out."""

    files: tuple[str, ...] = ()
    """Folders made by ``tfdeploy data convert``, or extxyz, ASE databases and the other formats of training/sources, which
    are read at the start; relative paths start at the current folder."""
    validation_files: tuple[str, ...] = ()
    """Structures for validation in files of their own; ``validation`` is then not used."""
    validation: float = 0.1
    """Fraction of the frames of ``files``, taken as whole trajectories, that choose the best checkpoint."""
    test: float = 0.1
    """Fraction, taken likewise, that training never sees."""
    fold: Literal[0, 1, 2, 3, 4] | None = None
    """Of MatBench's official ones: the test part is that of the fold, in place of ``test``; see splitting.py."""
    split_seed: int = 0
    rotate: bool = True
    """Turn every training structure at random, since the backbone has no rotation symmetry built in."""


@dataclasses.dataclass(frozen=True, eq=False)
class Part(Samples):
    """Some of the structures of several packs."""

    packs: tuple[Packed, ...]
    members: NDArray[np.int64]
    """(S, 2) pack, and structure in it."""

    def __len__(self) -> int:
        return len(self.members)

    def batch(self, chosen: Sequence[int]) -> Sample:
        """Some structures side by side, in the order asked for."""
        members = self.members[list(chosen)].tolist()
        runs = itertools.groupby(members, key=operator.itemgetter(0))
        return join([self.packs[pack].batch([k for _, k in own]) for pack, own in runs])

    def sizes(self, unit: Unit) -> NDArray[np.int64]:
        """(S,) what each structure counts; edges are those of the pack's own lists."""
        if unit == "structures":
            return np.ones(len(self), np.int64)
        of_packs = [pack.arrays["n_atoms" if unit == "atoms" else "n_edges"] for pack in self.packs]
        first = np.cumsum([0, *map(len, of_packs)])[:-1]
        return np.concatenate(of_packs).astype(np.int64)[first[self.members[:, 0]] + self.members[:, 1]]

    def chunks(self, most: int | None = None, size: int = 64) -> Iterator[Sample]:
        """The structures in batches of ``size``; no more than ``most`` of them, evenly spaced."""
        n = len(self) if most is None else min(most, len(self))
        chosen = np.arange(n) * len(self) // max(1, n)
        for start in range(0, n, size):
            yield self.batch(chosen[start : start + size].tolist())


def beside(one: Part, other: Part) -> Part:
    """The structures of two parts, those of ``one`` first."""
    return Part((*one.packs, *other.packs), np.concatenate([one.members, other.members + np.array([len(one.packs), 0])]))


@dataclasses.dataclass(frozen=True)
class Data:
    """Structures of the three parts, and what must be remembered of them."""

    train: Part
    validation: Part
    test: Part
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
    seen = model.elements, model.cutoff, model.max_neighbours, model.properties
    paths, own = ([index_file(Path(f)) for f in names] for names in (config.files, config.validation_files))
    packs, apart = tuple(read_packed(paths, *seen)), tuple(read_packed(own, *seen))
    split = _split(packs, config, 0.0 if own else config.validation)
    if own:
        names = _counts(apart)
        shared = sorted(names.keys() & {*split.train, *split.test})
        if shared:
            raise UserError(f"data.validation_files share trajectory '{shared[0]}' with data.files; give each file its own")
        split = dataclasses.replace(split, validation=tuple(sorted(names)))
    train = _part(packs, split.train)
    return Data(
        train=train,
        validation=_part(apart or packs, split.validation),
        test=_part(packs, split.test),
        split=split,
        files={str(p): sha256_of(p) for p in (*paths, *own)},
        shortest=shortest_distances(train.chunks(MOST)),
        undeclared=sum(int(np.isin(p.arrays["trajectory"], p.about.undeclared).sum()) for p in (*packs, *apart)),
    )


def _split(packs: Sequence[Packed], config: DataConfig, validation: float) -> Split:
    if config.fold is None:
        return split_by_trajectory(_counts(packs), validation, config.test, config.split_seed)
    if len(packs) != 1 or len(packs[0].about.files) != 1:
        raise UserError("data.fold is for the structures of one task of MatBench; name its one file in data.files")
    if all(np.isin(packs[0].target(name), (0.0, 1.0)).all() for name in packs[0].about.targets):
        raise UserError("data.fold is for regression, and this task is to tell two classes apart; set data.test in its place")
    names = [packs[0].trajectory(k) for k in range(len(packs[0]))]
    return split_by_fold(names, packs[0].arrays["row"], config.fold, validation, config.split_seed)


def load_whole(files: Sequence[str], model: ModelConfig) -> tuple[Part, dict[str, str]]:
    """All structures of some files, and path → sha256; UserError as for :func:`load`."""
    paths = [index_file(Path(f)) for f in files]
    packs = tuple(read_packed(paths, model.elements, model.cutoff, model.max_neighbours, model.properties))
    return _part(packs, list(_counts(packs))), {str(p): sha256_of(p) for p in paths}


def _counts(packs: Sequence[Packed]) -> Counter[str]:
    """Structures of each trajectory."""
    counts: Counter[str] = Counter()
    for pack in packs:
        names = pack.about.trajectories
        counts.update(dict(zip(names, np.bincount(pack.arrays["trajectory"], minlength=len(names)).tolist(), strict=True)))
    return counts


def _part(packs: tuple[Packed, ...], trajectories: Sequence[str]) -> Part:
    names = set(trajectories)
    members = [np.zeros((0, 2), np.int64)]
    for k, pack in enumerate(packs):
        wanted = np.array([name in names for name in pack.about.trajectories])
        own = np.nonzero(wanted[pack.arrays["trajectory"]])[0]
        members.append(np.stack([np.full(len(own), k), own], axis=1))
    return Part(packs, np.concatenate(members))


def fit_references(samples: Iterable[Sample]) -> Tensor:
    """Energies of free elements, (119,) float64 eV, least squares of energy per atom on element fractions.

    Where the data cannot tell elements apart (a compound of fixed composition) the solution of smallest norm is taken:
    it fits just as well and shares the energy evenly.
    """
    found = [(s.graph.composition[known], s.energy[known]) for s in samples for known in [s.energy.isfinite()]]
    counts = torch.cat([composition for composition, _ in found]).numpy()  # (G, 119)
    energy = torch.cat([energies for _, energies in found]).numpy()
    n_atoms = counts.sum(axis=1)
    solution, *_ = np.linalg.lstsq(counts / n_atoms[:, None], energy / n_atoms, rcond=1e-10)
    references = np.zeros(N_NUMBERS)
    seen = counts.sum(axis=0) > 0
    references[seen] = solution[seen]
    return torch.from_numpy(references)


def elements_seen(part: Part) -> list[str]:
    """Chemical symbols that occur, by atomic number."""
    seen = np.zeros(N_NUMBERS, bool)
    for k, pack in enumerate(part.packs):
        own = np.zeros(len(pack), bool)
        own[part.members[part.members[:, 0] == k, 1]] = True
        for start in range(0, len(pack), MOST):  # so many at a time, since a pack may be far larger than memory
            end = min(start + MOST, len(pack))
            atoms = slice(pack.first_atom[start], pack.first_atom[end])
            seen[pack.arrays["numbers"][atoms][np.repeat(own[start:end], pack.arrays["n_atoms"][start:end])]] = True
    return [chemical_symbols[z] for z in np.nonzero(seen)[0]]


def shortest_distances(samples: Iterable[Sample]) -> dict[str, float]:
    """Å. The shortest distance of each pair of elements, such as 'Si-Ge' with the lighter one first, that occurs."""
    shortest = np.full((N_NUMBERS, N_NUMBERS), np.inf)
    for sample in samples:
        numbers = sample.graph.numbers[sample.graph.edge_index].sort(dim=0).values.numpy()  # (2, E)
        np.minimum.at(shortest, (numbers[0], numbers[1]), torch.linalg.vector_norm(sample.graph.edge_vector, dim=1).numpy())
    pairs = np.argwhere(np.isfinite(shortest)).tolist()
    return {f"{chemical_symbols[a]}-{chemical_symbols[b]}": float(shortest[a, b]) for a, b in pairs}


def fit_scale(samples: Iterable[Sample]) -> Tensor:
    """Root mean square of the force components times 1 Å, () float64 eV; 1 where all forces vanish or none is known.

    Forces outnumber energies by 3N to one and carry most of the loss. With this unit a network whose output changes by
    about 1 per Å, which is how a fresh one behaves, has forces of the right size from the first step.
    """
    forces = torch.cat([s.forces for s in samples])
    scale = forces[forces.isfinite()].square().mean().sqrt()
    return scale if float(scale) > 1e-8 else torch.ones((), dtype=torch.float64)


def less_repulsion(samples: Iterable[Sample], repulsion: Callable[[Graph], Tensor]) -> Iterator[Sample]:
    """Labels without what a model with ``zbl`` adds itself, so that references and scale are those of its network.

    Args:
        samples: as labelled.
        repulsion: energies of the atoms of a graph, (N,) float64 eV; that of the model, whose form is one of several.
    """
    for sample in samples:
        energies, edge_forces = derivatives.evaluate(repulsion, sample.graph)
        energy = sample.energy - derivatives.energy(energies, sample.graph)
        yield sample._replace(energy=energy, forces=sample.forces - derivatives.forces(edge_forces, sample.graph))
