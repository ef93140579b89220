"""SimSiam: each view predicts the other, which stands still (Chen and He, 2021).

    L = −½ [cos(p_A, sg z_B) + cos(p_B, sg z_A)],   z = projector(h),   p = predictor(z),

a mean over pairs; sg stops the gradient, without which everything would collapse to a point.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from triforces_deploy.training.objectives.across import mean, projector
from triforces_deploy.training.objectives.base import Seen, Term, paired
from triforces_deploy.training.objectives.config import SimSiamConfig


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """−cos, (), mean over the pairs of all processes; (M, D) each. The target gets no gradient."""
    return -mean(functional.cosine_similarity(prediction, target.detach(), dim=1))


class SimSiam(Term):
    """The loss of projected features.

    Args:
        config: constants.
        widths: features of each stream, by name.
    """

    def __init__(self, config: SimSiamConfig, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.config = config
        self.projector = projector(sum(widths.values()), (config.hidden, config.hidden), config.width)
        self.predictor = projector(config.width, (config.hidden // 4,), config.width)

    def forward(self, seen: Seen) -> Tensor:
        z = self.projector(torch.cat(paired(seen, self.config.level, seen.joint())))
        (z_a, z_b), (p_a, p_b) = z.chunk(2), self.predictor(z).chunk(2)
        return 0.5 * (negative_cosine(p_a, z_b) + negative_cosine(p_b, z_a))
