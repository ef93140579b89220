"""LeJEPA (TriForces, eqs. 8-10): embeddings of two views agree, and all embeddings together are Gaussian.

    L_inv = 1/M Σ_m ¼ |A_m − B_m|²,   L_level = (1 − λ) L_inv + λ SIGReg([A; B]),   L = w_graph L_graph + w_node L_node

with A and B the embeddings of the M pairs of first and second views: what projection heads make of the features of atoms
(nodes), or of their means (graphs). Nothing else keeps the embeddings from collapsing: no negatives, no second network.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from triforces_deploy.training.objectives.across import mean, projector
from triforces_deploy.training.objectives.base import Seen, Term, paired
from triforces_deploy.training.objectives.config import LeJEPAConfig, Level
from triforces_deploy.training.objectives.sigreg import directions, sigreg

LEVELS: tuple[Level, ...] = ("graph", "node")


def invariance(first: Tensor, second: Tensor) -> Tensor:
    """L_inv, (), of embeddings (M, D): the variance across two views, summed over D, mean over the pairs of all processes."""
    return mean(0.25 * (first - second).square().sum(dim=1))


class LeJEPA(Term):
    """Both levels, of the joint features or of each stream.

    Args:
        config: constants.
        widths: features of each stream, by name.
    """

    def __init__(self, config: LeJEPAConfig, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.config = config
        kinds = widths if config.of == "streams" else {"joint": sum(widths.values())}
        self.shares = {level: share for level, share in zip(LEVELS, (config.graph, config.node), strict=True) if share > 0}
        self.projectors = nn.ModuleDict(
            {f"{kind}_{level}": projector(width, (config.hidden,), config.width)
             for kind, width in kinds.items() for level in self.shares}
        )  # fmt: skip
        self.kinds = tuple(kinds)

    def forward(self, seen: Seen) -> Tensor:
        """Mean over the kinds of features of the weighted sum over levels."""
        parts = [
            share * self._level(seen, kind, level) / len(self.kinds)
            for kind in self.kinds
            for level, share in self.shares.items()
        ]
        return torch.stack(parts).sum()

    def _level(self, seen: Seen, kind: str, level: str) -> Tensor:
        features = seen.joint() if kind == "joint" else seen.streams[kind]
        pairs = torch.cat(paired(seen, level, features))
        embeddings = self.projectors[f"{kind}_{level}"](pairs)
        along = directions(self.config.width, self.config.slices, seen.views.key, embeddings)
        weight = self.config.sigreg
        return (1 - weight) * invariance(*embeddings.chunk(2)) + weight * sigreg(embeddings, along)
