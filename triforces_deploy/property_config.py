"""What a property is, in a recipe and in a checkpoint."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class PropertyConfig:
    """One property that is read off the features; see properties.py."""

    name: str
    """What the data call it: a property of MatBench or QM9, a key of ``info`` or an array of extended XYZ."""
    kind: Literal["scalar", "vector", "tensor", "binary"] = "scalar"
    """One number, a polar vector, a symmetric 3×3 tensor, or 1 for yes and 0 for no."""
    of: Literal["structure", "atom"] = "structure"
    pooling: Literal["mean", "sum"] = "mean"
    """How a structure's is made of its atoms': 'mean' is intensive, as a band gap, 'sum' extensive, as a heat capacity."""

    def components(self) -> int:
        """Numbers of one value."""
        return {"scalar": 1, "vector": 3, "tensor": 9, "binary": 1}[self.kind]
