"""Properties other than energies, read off the features: of an atom, or of a structure as a mean or a sum over its atoms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from triforces_deploy.backbones.base import Backbone
from triforces_deploy.config import ModelConfig
from triforces_deploy.direct import DEGREE_2, VOIGT
from triforces_deploy.errors import UserError
from triforces_deploy.graph import Graph
from triforces_deploy.heads import mean_over_atoms
from triforces_deploy.nn.message_passing import over_atoms
from triforces_deploy.nn.mlp import mlp
from triforces_deploy.property_config import PropertyConfig

FORBIDDEN = set(',/$"\\\r\n')
"""Characters that no name has: it heads a column of the log and a picture, and is part of a file's name."""


class PropertyHeads(nn.Module):
    """A head for each property, which reads the concatenated features h.

    What it gives for an atom, and for a structure, is

        p_i = s u_i + m I,    P = mean or sum of p_i over the atoms of the structure,

    with s and m the spread and the mean of the training labels (of 'sum': of the labels per atom), and I = 1 for a scalar, 0
    for a vector and the unit matrix for a tensor. With a perceptron φ:

    =========  =============================  ===================================================
    kind       features know directions       vectors v_ic and harmonics t_ic beside invariant ones
    =========  =============================  ===================================================
    'scalar'   u_i = φ(h_i)                   φ(h_i)
    'vector'   φ(h_i), 3 numbers              Σ_c φ_c(h_i) v_ic
    'tensor'   φ(h_i), xx yy zz yz xz xy      φ_0(h_i) I + Σ_c φ_c(h_i) Σ_m t_icm B_m
    =========  =============================  ===================================================

    A 'binary' property is a 'scalar' here: the logarithm of the odds, ln(p/(1−p)) of the probability of yes.

    Args:
        width: of h.
        hidden: widths of the layers of all perceptrons.
        channels: of v and t; 0 where features know directions themselves.
        properties: at least one.

    Raises:
        UserError: a name that stands twice or cannot be one, or a sum of yes and no.
    """

    mean: Tensor
    """(P,) float64, m of each property, in its own units."""
    spread: Tensor
    """(P,) float64, s."""

    def __init__(self, width: int, hidden: Sequence[int], channels: int, properties: Sequence[PropertyConfig]) -> None:
        super().__init__()
        names = [p.name for p in properties]
        for name in names:
            if not name.strip() or FORBIDDEN & set(name) or names.count(name) > 1:
                raise UserError(f"model.properties: the name {name!r} stands twice or holds one of , / $ and quotes; rename it")
        summed = [p.name for p in properties if p.kind == "binary" and p.pooling == "sum"]
        if summed:
            raise UserError(f"model.properties: '{summed[0]}' is yes or no, which no sum over atoms is; set pooling to mean")
        outputs = {"scalar": 1, "binary": 1, "vector": channels or 3, "tensor": channels + 1 if channels else 6}
        self.config, self.widest = tuple(properties), max([width, *hidden])
        self.layers = nn.ModuleList([mlp([width, *hidden, outputs[p.kind]]) for p in properties])
        self.register_buffer("mean", torch.zeros(len(names), dtype=torch.float64))
        self.register_buffer("spread", torch.ones(len(names), dtype=torch.float64))

    def forward(self, streams: Sequence[Tensor], harmonics: Tensor | None, graph: Graph) -> dict[str, Tensor]:
        """Features of each stream and, where there are such, coefficients of degrees 0 to 2, (N, 9, channels)."""
        found = {}
        for head, config, mean, spread in zip(self.layers, self.config, self.mean, self.spread, strict=True):
            raw = over_atoms(lambda *h, head=head: head(torch.cat(h, dim=1)), *streams, widest=self.widest)
            of_atoms = spread * _shaped(raw, config, harmonics).to(torch.float64) + mean * isotropic(config).to(spread)
            if config.of == "structure":
                pooled, n_atoms = mean_over_atoms(of_atoms, graph)
                found[config.name] = pooled * n_atoms[:, None] if config.pooling == "sum" else pooled
            else:
                found[config.name] = of_atoms
        return found


def property_heads(config: ModelConfig, width: int, backbone: Backbone) -> PropertyHeads | None:
    """Those of a model whose features have ``width``, or None; UserError for what the backbone cannot give."""
    if not config.properties:
        return None
    turning = [p.name for p in config.properties if p.kind in ("vector", "tensor")]
    if turning and backbone.directions == "none":
        raise UserError(
            f"model.properties: {config.backbone.name} gives nothing that turns with the structure, and '{turning[0]}' does; "
            "choose another backbone, or scalar properties"
        )
    channels = backbone.width if backbone.directions == "harmonics" else 0
    return PropertyHeads(width, config.head_hidden, channels, config.properties)


def isotropic(config: PropertyConfig) -> Tensor:
    """I of the kind, (K,): what of it no rotation changes."""
    return {"scalar": torch.ones(1), "binary": torch.ones(1), "vector": torch.zeros(3), "tensor": torch.eye(3).flatten()}[
        config.kind
    ]


def _shaped(raw: Tensor, config: PropertyConfig, harmonics: Tensor | None) -> Tensor:
    """What the perceptron gives → (N, K)."""
    if config.kind in ("scalar", "binary") or (config.kind == "vector" and harmonics is None):
        return raw
    if harmonics is None:
        return raw[:, VOIGT].flatten(1)
    if config.kind == "vector":
        return torch.einsum("nc,nxc->nx", raw, harmonics[:, 1:4])
    of_degree_2 = torch.einsum("nc,nmc->nm", raw[:, 1:], harmonics[:, 4:9])
    matrices = torch.einsum("nm,mxy->nxy", of_degree_2, raw.new_tensor(DEGREE_2))
    return (raw[:, :1, None] * torch.eye(3).to(raw) + matrices).flatten(1)
