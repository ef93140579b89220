"""Which structures are trained on, validated and tested."""

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
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray

from triforces_deploy.config import ModelConfig
from triforces_deploy.errors import UserError
from triforces_deploy.files import sha256_of
from triforces_deploy.graph import N_NUMBERS
from triforces_deploy.training.packed import Packed, index_file
from triforces_deploy.training.reading import read_packed, read_structures
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
    are read at the start, into memory by fits to labels; relative paths start at the current folder."""
    validation_files: tuple[str, ...] = ()
    """Structures for validation in files of their own; ``validation`` is then not used."""
    validation: float = 0.1
    """Fraction of the frames of ``files``, taken as whole trajectories, that choose the best checkpoint."""
    test: float = 0.1
    """Fraction, taken likewise, that training never sees."""
    fold: Literal[0, 1, 2, 3, 4] | None = None
    """Of MatBench's official ones: the test part is that of the fold, in place of ``test``; `tfdeploy folds` runs all five."""
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

    def atoms(self, k: int) -> Atoms:
        """One structure without its labels."""
        pack, own = self.members[k].tolist()
        found: Atoms = self.packs[pack].atoms(own)
        return found

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
    undeclared: int
    """Frames whose file names no trajectory; they were kept together by file and formula."""


def load(config: DataConfig, model: ModelConfig) -> Data:
    """Read the files and split them.

    Raises:
        UserError: no files, bad structures, or nothing that can be held out without cutting a trajectory in two.
    """
    model.numbers()
    seen = model.elements, model.cutoff, model.max_neighbours, model.properties
    return _shared_out(config, lambda paths: read_packed(paths, *seen))


def load_unlabelled(config: DataConfig, model: ModelConfig, edges: bool) -> Data:
    """The same without labels, which then need not be there; ``edges`` for those who count by them."""
    model.numbers()
    if config.fold is not None:
        raise UserError("data.fold is for fits to labels; name the structures to pretrain on in files of their own")
    return _shared_out(config, lambda paths: read_structures(paths, model.elements, model.cutoff if edges else None))


def _shared_out(config: DataConfig, read: Callable[[Sequence[Path]], Sequence[Packed]]) -> Data:
    if not config.files:
        raise UserError("data.files is empty; name at least one file of structures, or a folder that was converted")
    paths, own = ([index_file(Path(f)) for f in names] for names in (config.files, config.validation_files))
    packs, apart = tuple(read(paths)), tuple(read(own))
    split = _split(packs, config, 0.0 if own else config.validation)
    if own:
        names = _counts(apart)
        shared = sorted(names.keys() & {*split.train, *split.test})
        if shared:
            raise UserError(f"data.validation_files share trajectory '{shared[0]}' with data.files; give each file its own")
        split = dataclasses.replace(split, validation=tuple(sorted(names)))
    train, validation = _part(packs, split.train), _part(apart or packs, split.validation)
    if not train or not validation:
        raise UserError(
            "no structures to train on or none to validate on; set data.validation above 0 or name validation_files"
        )
    return Data(
        train=train,
        validation=validation,
        test=_part(packs, split.test),
        split=split,
        files={str(p): sha256_of(p) for p in (*paths, *own)},
        undeclared=sum(int(np.isin(p.arrays["trajectory"], p.about.undeclared).sum()) for p in (*packs, *apart)),
    )


def _split(packs: Sequence[Packed], config: DataConfig, validation: float) -> Split:
    if config.fold is None:
        return split_by_trajectory(_counts(packs), validation, config.test, config.split_seed)
    if len(packs) != 1 or len(packs[0].about.files) != 1:
        raise UserError("data.fold is for the structures of one task of MatBench; name its one file in data.files")
    (pack,) = packs
    names = [pack.trajectory(k) for k in range(len(pack))]
    targets = [pack.target(name)[:, 0] for name in pack.about.targets]
    classes = targets[0] if len(targets) == 1 and np.isin(targets[0], (0.0, 1.0)).all() else None
    return split_by_fold(names, pack.arrays["row"], config.fold, validation, config.split_seed, classes)


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
