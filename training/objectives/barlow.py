"""Barlow Twins: the cross-correlation of the embeddings of two views shall be the identity (Zbontar et al., 2021).

    C = 1/M Ẑ_Aᵀ Ẑ_B,   L = Σ_d (1 − C_dd)² + λ (8192/D) Σ_{d≠e} C_de²

Ẑ are the embeddings after a norm over both views together. With displaced atoms and a tenth of atoms and edges masked this
is what Crystal Twins (Magar et al., 2022) does: ``views: {noise: [0.05, 0.05], draw: [mask, edges], masked: 0.1, chance: 1}``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from triforces_deploy.training.objectives.across import BatchNorm, all_sum, n_rows, projector
from triforces_deploy.training.objectives.base import Seen, Term, paired
from triforces_deploy.training.objectives.config import BarlowConfig

REFERENCE_WIDTH = 8192


def barlow(first: Tensor, second: Tensor, off_diagonal: float) -> Tensor:
    """L, (), of embeddings (M, D); ``off_diagonal`` is λ before it is scaled by the width."""
    width = first.shape[1]
    first, second = BatchNorm(width, affine=False)(torch.cat([first, second])).chunk(2)
    correlation = all_sum(first.T @ second) / n_rows(first)
    diagonal = torch.diagonal(correlation)
    others = correlation.square().sum() - diagonal.square().sum()
    return (1 - diagonal).square().sum() + off_diagonal * REFERENCE_WIDTH / width * others


class Barlow(Term):
    """The loss of projected features.

    Args:
        config: constants.
        widths: features of each stream, by name.
    """

    def __init__(self, config: BarlowConfig, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.config = config
        self.projector = projector(sum(widths.values()), config.hidden, config.width)

    def forward(self, seen: Seen) -> Tensor:
        first, second = self.projector(torch.cat(paired(seen, self.config.level, seen.joint()))).chunk(2)
        return barlow(first, second, self.config.off_diagonal)
