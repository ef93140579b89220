"""What every back end of export gives back."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch.fx import GraphModule

from triforces_deploy.graph import Graph
from triforces_deploy.onnx_positions import IMAGES
from triforces_deploy.potential import Facts


@dataclasses.dataclass(frozen=True)
class Captured:
    """One evaluation as a flat graph; see export/capture.py."""

    module: GraphModule
    """Tensors of ``payloads.base.INPUTS`` → those that ``outputs`` names. Back ends copy before they rewrite."""
    example: Graph
    """What it was captured with: numbers of atoms, edges and structures all different."""
    outputs: tuple[str, ...]
    facts: Facts
    bytes_per_edge: float
    """Memory that one evaluation takes, weights aside; an upper bound for forms that fuse operations."""
    bytes_per_atom: float
    lean: bool = False
    """Whether layers are computed again in the backward pass instead of kept."""
    native: bool = False
    """Compile for this very CPU instead of a portable instruction set."""
    device: str = "cpu"
    """'cpu' or 'cuda': what to compile for, where that makes a difference; the graph itself was captured on the CPU."""
    images: int = IMAGES
    """Periodic images each way that ``onnx-positions`` can list; see onnx_positions.py."""


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A compiled form."""

    content: bytes
    target: str = "any"
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
