"""Yes or no: the loss, and the figures by which classifiers are compared."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


@dataclasses.dataclass(frozen=True)
class ClassError:
    """How well one property of kind 'binary' is told, over everything that is labelled; yes is said above one half."""

    labels: int
    """Structures or atoms."""
    roc_auc: float
    """Probability that a yes has the higher odds of a pair of yes and no; what MatBench ranks by. NaN without both."""
    balanced_accuracy: float
    """Mean of the shares of yes and of no that are found; NaN likewise."""
    f1: float
    """2 TP / (2 TP + FP + FN); NaN where there is and is said nothing but no."""
    accuracy: float

    def line(self, name: str) -> str:
        """For a person."""
        return f"ROC-AUC {name} {self.roc_auc:.3f} (accuracy {self.accuracy:.3f})"

    def row(self, name: str) -> dict[str, float]:
        """The figures by their columns in the log."""
        return {f"val_{name}_{figure}": vars(self)[figure] for figure in CLASS_COLUMNS}


CLASS_COLUMNS = ("roc_auc", "accuracy")
"""Figures of a validation that are logged."""


class ClassTally:
    """Keeps labels and odds batch by batch: a rank is known only at the end."""

    def __init__(self) -> None:
        self._labels: list[NDArray[np.float64]] = []
        self._log_odds: list[NDArray[np.float64]] = []

    def add(self, label: Tensor, log_odds: Tensor) -> None:
        """Count (R, 1) of both."""
        self._labels.append(label[:, 0].cpu().numpy())
        self._log_odds.append(log_odds[:, 0].cpu().numpy())

    def error(self) -> ClassError:
        """The figures of everything added so far."""
        return class_error(np.concatenate([[], *self._labels]), np.concatenate([[], *self._log_odds]))


def class_error(label: NDArray[np.float64], log_odds: NDArray[np.float64]) -> ClassError:
    """The figures of (R,) labels 0 or 1, and predictions."""
    yes, said = label > 0.5, log_odds > 0
    hits, right = float((yes & said).sum()), (yes == said)
    wrong = float(len(label) - right.sum())
    nan = float("nan")
    both = bool(yes.any() and not yes.all())
    return ClassError(
        labels=len(label),
        roc_auc=roc_auc(yes, log_odds) if both else nan,
        balanced_accuracy=float(right[yes].mean() + right[~yes].mean()) / 2 if both else nan,
        f1=2 * hits / (2 * hits + wrong) if hits + wrong else nan,
        accuracy=float(right.mean()) if len(label) else nan,
    )


def roc_auc(yes: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """Area under the receiver's curve by ranks, ties in the middle: (Σ ranks of yes − n(n + 1)/2) / (n m), for n yes, m no."""
    from scipy.stats import rankdata

    n = int(yes.sum())
    return float((rankdata(score)[yes].sum() - n * (n + 1) / 2) / (n * (len(yes) - n)))


def cross_entropy(log_odds: Tensor, label: Tensor) -> Tensor:
    """−ln of the probability of what is so, (R, 1) of both → (R,)."""
    return functional.binary_cross_entropy_with_logits(log_odds, label, reduction="none")[:, 0]


def base_log_odds(label: Tensor) -> float:
    """ln(n/m) of n yes and m no, half a case added to each."""
    n = float(label.sum())
    return float(np.log((n + 0.5) / (len(label) - n + 0.5)))


def probability(log_odds: Tensor) -> Tensor:
    """Of yes."""
    return torch.sigmoid(log_odds)
