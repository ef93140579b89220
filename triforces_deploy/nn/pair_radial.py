"""Functions of the distance of two atoms and of their elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional


class PairRadial(nn.Module):
    """A perceptron of a basis of the distance and an embedding of each end, with two normed hidden layers.

    R = W₃ SiLU(LN(W₂ SiLU(LN(W₁ [basis ‖ neighbour ‖ centre] + b₁)) + b₂)) + b₃.
    """

    def __init__(self, n_basis: int, width: int, n_out: int) -> None:
        super().__init__()
        self.sizes = (n_basis, width, width)
        self.first = nn.Linear(sum(self.sizes), width)
        self.rest = nn.Sequential(
            nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, width), nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, n_out)
        )

    def at_centre(self, embeddings: Tensor) -> Tensor:
        """What the element of a centre adds to the first layer, (N, width) → (N, width): per atom, not per edge."""
        return functional.linear(embeddings, self._weights()[2], self.first.bias)

    def at_neighbour(self, embeddings: Tensor) -> Tensor:
        """The same of a neighbour."""
        return functional.linear(embeddings, self._weights()[1])

    def forward(self, basis: Tensor, at_centre: Tensor, at_neighbour: Tensor) -> Tensor:
        """(E, n_basis) and what both ends add, (E, width) each, → (E, n_out)."""
        hidden = functional.linear(basis, self._weights()[0]) + at_centre + at_neighbour
        return cast(Tensor, self.rest(hidden))

    def _weights(self) -> Sequence[Tensor]:
        """Of the first layer, for the basis, the neighbour and the centre."""
        return cast(Sequence[Tensor], self.first.weight.split(self.sizes, dim=1))
