"""What every back end of export gives back."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch.fx import GraphModule

from triforces_deploy.graph import Graph
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


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A compiled form."""

    content: bytes
    target: str = "any"
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
