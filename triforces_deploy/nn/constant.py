"""Tables that are computed, not learnt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class Constant(nn.Module):
    """A float64 table that follows its model to another device but is never rounded with it.

    A model that was float32 once has then the same tables as one that never was. No state holds them.
    """

    values: Tensor

    def __init__(self, values: NDArray[np.float64]) -> None:
        super().__init__()
        self.register_buffer("values", torch.from_numpy(np.ascontiguousarray(values)), persistent=False)

    def forward(self, like: Tensor) -> Tensor:
        """The table in the type of another tensor."""
        return self.values.to(like.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], _recurse: bool = True) -> Self:
        self.values = self.values.to(fn(self.values).device)
        return self
