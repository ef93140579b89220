"""Plain multilayer perceptrons with the one activation that is smooth enough for molecular dynamics."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from triforces_deploy.nn.linear import Linear


def mlp(sizes: Sequence[int], bias: bool = True) -> nn.Sequential:
    """Linear layers of the given widths with SiLU between them and none after the last; without ``bias``, 0 gives 0."""
    layers: list[nn.Module] = []
    for k, (n_in, n_out) in enumerate(pairwise(sizes)):
        if k:
            layers.append(nn.SiLU())
        layers.append(Linear(n_in, n_out, bias=bias))
    return nn.Sequential(*layers)
