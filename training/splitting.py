"""Which trajectories are trained on, validated and tested."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from triforces_deploy.errors import UserError

FOLDS = 5
FOLD_SEED = 18012019
"""Of MatBench v0.1: scikit-learn's ``KFold(5, shuffle=True, random_state=18012019)`` for numbers, and its ``StratifiedKFold``
with the same for two classes."""


@dataclasses.dataclass(frozen=True)
class Split:
    """Trajectories of each part; what makes a figure on held-out structures honest."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def split_by_trajectory(counts: Mapping[str, int], validation: float, test: float, seed: int) -> Split:
    """Deal whole trajectories, of so many frames each, in random order, until each part has its fraction of the frames.

    Raises:
        UserError: fractions that leave nothing to train on, or fewer trajectories than parts.
    """
    if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
        raise UserError(f"data.validation = {validation} and data.test = {test}: expected fractions that sum to less than 1")
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
        while fraction > 0 and len(order) > left_over and sum(counts[n] for n in parts[part]) < fraction * sum(counts.values()):
            parts[part].append(order.pop())
    return Split(tuple(sorted(order)), tuple(sorted(parts["validation"])), tuple(sorted(parts["test"])))


def fold_of(rows: int, fold: int) -> NDArray[np.int64]:
    """Rows of the test part of an official fold, sorted: the ``fold``-th of five pieces of one shuffle, the longer first."""
    shuffled = np.random.RandomState(FOLD_SEED).permutation(rows)
    return np.sort(np.array_split(shuffled, FOLDS)[fold])


def stratified_fold_of(classes: NDArray[np.float64], fold: int) -> NDArray[np.int64]:
    """The same where two classes are to be told apart: each fold has its share of both.

    What scikit-learn does: the sorted classes are dealt to the folds in turn, which says how many each fold gets of a class;
    then the places of each class are shuffled, that of the first row before the other.
    """
    _, first, of_rows = np.unique(classes, return_index=True, return_inverse=True)
    of_rows = np.argsort(np.argsort(first))[of_rows]  # numbered by where they come first
    dealt = np.sort(of_rows)
    counts = np.array([np.bincount(dealt[k::FOLDS], minlength=len(first)) for k in range(FOLDS)])
    rng, folds = np.random.RandomState(FOLD_SEED), np.empty(len(classes), np.int64)
    for k in range(len(first)):
        places = np.arange(FOLDS).repeat(counts[:, k])
        rng.shuffle(places)
        folds[of_rows == k] = places
    return np.nonzero(folds == fold)[0]


def split_by_fold(
    names: Sequence[str],
    row: NDArray[np.int64],
    fold: int,
    validation: float,
    seed: int,
    classes: NDArray[np.float64] | None = None,
) -> Split:
    """The official test part of a task, and a fraction of the rest to validate on.

    Args:
        names: (S,) trajectory of each structure, each its own.
        row: (S,) its place in the file.
        fold: 0 to 4.
        validation: fraction of the structures that are not tested.
        seed: of their choice.
        classes: (S,) 0 or 1, where that is the task.

    Raises:
        UserError: a structure of the file is missing, so that rows do not mean what they mean to others.
    """
    if len(set(names)) != len(names) or not np.array_equal(row, np.arange(len(names))) or len(names) < FOLDS:
        raise UserError(
            "data.fold needs every structure of the task, in the file's order and each for itself, and some were left out; "
            "name the JSON file itself in data.files"
        )
    tested = fold_of(len(names), fold) if classes is None else stratified_fold_of(classes, fold)
    test = {names[k] for k in tested.tolist()}
    left = split_by_trajectory({name: 1 for name in names if name not in test}, validation, 0.0, seed)
    return dataclasses.replace(left, test=tuple(sorted(test)))
