"""The composition stream: which elements a structure is made of, without any geometry.

A transformer over the distinct elements of a structure. Instead of one token per atom there is one per element, and the
count enters as a bias on the key: a_ts = q_t·k_s/√d_h + log c_s, which equals ordinary attention over all atoms (TriForces,
eq. 3 and proposition A.1). Without a class token only fractions matter, so a supercell has the features of its unit cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from triforces_deploy.config import CompositionConfig
from triforces_deploy.errors import UserError
from triforces_deploy.graph import N_NUMBERS, Graph
from triforces_deploy.nn.mlp import mlp

ABSENT = -1e4
"""Bias on the key of an element that is not there: its weight is exactly zero, and yet an empty structure gives no NaN."""


class CompositionStream(nn.Module):
    """Features of the atoms from the composition of their structure; atoms of one element share a vector.

    Args:
        config: sizes.
        numbers: atomic numbers of the elements the model knows.
    """

    elements: Tensor
    column: Tensor

    def __init__(self, config: CompositionConfig, numbers: Sequence[int]) -> None:
        super().__init__()
        if config.heads < 1 or config.width % config.heads:
            raise UserError(f"model.composition: width {config.width} is not a multiple of heads {config.heads}")
        self.width = config.width
        self.register_buffer("elements", torch.tensor(list(numbers)), persistent=False)
        self.register_buffer("column", columns(numbers), persistent=False)
        self.embedding = nn.Embedding(N_NUMBERS, config.width)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def admit_masked(self) -> None:
        """Count masked atoms, number 0, as one more element, with the row of the embedding that no real one has."""
        self.elements = torch.cat([self.elements, self.elements.new_zeros(1)])
        self.column = self.column.clone()
        self.column[0] = len(self.elements) - 1

    def forward(self, graph: Graph) -> Tensor:
        """(N, width)."""
        table = self.table(graph.composition)  # (G, T, width)
        n_elements = self.elements.shape[0]
        row = graph.batch * n_elements + self.column.index_select(0, graph.numbers)
        return table.flatten(0, 1).index_select(0, row)

    def table(self, composition: Tensor) -> Tensor:
        """Features of every element of every structure: counts (G, 119) → (G, T, width), T elements the model knows."""
        counts = composition.index_select(1, self.elements)  # (G, T)
        fractions = counts / counts.sum(1, keepdim=True).clamp(min=1.0)
        bias = torch.where(counts > 0, fractions.clamp(min=1e-30).log(), torch.full_like(fractions, ABSENT))
        bias = bias.to(self.embedding.weight.dtype)[:, None, None, :]  # (G, 1, 1, T)
        tokens = self.embedding(self.elements).expand(composition.shape[0], -1, -1)
        for block in self.blocks:
            tokens = block(tokens, bias)
        return cast(Tensor, self.norm(tokens))


class CompositionTable(nn.Module):
    """The stream of one frozen composition: a vector per element, and no transformer to run.

    Args:
        config: its width.
        numbers: atomic numbers of the elements the model knows, a row each.
    """

    column: Tensor

    def __init__(self, config: CompositionConfig, numbers: Sequence[int]) -> None:
        super().__init__()
        self.width = config.width
        self.register_buffer("column", columns(numbers), persistent=False)
        self.vectors = nn.Parameter(torch.zeros(len(numbers), config.width))

    def forward(self, graph: Graph) -> Tensor:
        """(N, width)."""
        return self.vectors.index_select(0, self.column.index_select(0, graph.numbers))


def columns(numbers: Sequence[int]) -> Tensor:
    """(119,) int64. Which of the model's elements each atomic number is."""
    column = torch.zeros(N_NUMBERS, dtype=torch.int64)
    column[list(numbers)] = torch.arange(len(numbers))
    return column


class _Block(nn.Module):
    """One pre-norm transformer block; the bias is added on the key axis, the same for all heads and queries."""

    def __init__(self, config: CompositionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm2 = nn.LayerNorm(config.width)
        self.feed_forward = mlp([config.width, config.hidden, config.width])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """(G, T, width), (G, 1, 1, T) → (G, T, width)."""
        x = x + self.out(count_weighted_attention(*self._split(self.qkv(self.norm1(x))), bias).transpose(1, 2).flatten(2))
        return cast(Tensor, x + self.feed_forward(self.norm2(x)))

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(G, T, 3·width) → three of (G, H, T, width/H)."""
        n_structures, n_tokens, _ = qkv.shape
        q, k, v = qkv.view(n_structures, n_tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v


def count_weighted_attention(q: Tensor, k: Tensor, v: Tensor, log_counts: Tensor) -> Tensor:
    """softmax(q·kᵀ/√d_h + log c) v, TriForces eq. 3.

    Args:
        q: (G, H, T, d_h), like k and v.
        k: keys.
        v: values.
        log_counts: (G, 1, 1, T), logarithm of counts or of fractions.

    Returns:
        (G, H, T, d_h).
    """
    logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + log_counts
    return torch.softmax(logits, dim=-1) @ v
