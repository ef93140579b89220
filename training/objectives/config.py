"""Which terms a pretraining has, and their constants."""

from __future__ import annotations

import dataclasses
from typing import Literal

from triforces_deploy.errors import UserError

Level = Literal["graph", "node"]


@dataclasses.dataclass(frozen=True)
class DenoiseConfig:
    """Tell the noise in the positions; see denoising.py."""

    weight: float = 10.0
    head: Literal["vector", "direct", "gradient"] = "vector"
    """'vector' Σ_j a_ij r̂_ij, equivariant; 'direct' a perceptron of the features, for backbones that learn rotations;
    'gradient' the derivative of the model's own energy, which so becomes a well around the clean structure."""
    target: Literal["noise", "unit"] = "noise"
    """What is predicted: the displacement in Å, or that over its standard deviation."""


@dataclasses.dataclass(frozen=True)
class MaskedConfig:
    """Tell the element of masked atoms; see masked.py."""

    weight: float = 0.1
    hidden: tuple[int, ...] = (128, 128)


@dataclasses.dataclass(frozen=True)
class LeJEPAConfig:
    """Two views of a structure shall agree, and embeddings be Gaussian; see lejepa.py."""

    weight: float = 0.1
    graph: float = 0.5
    """Share of the structures' embeddings."""
    node: float = 0.5
    """Share of the atoms' embeddings."""
    sigreg: float = 0.05
    """λ of (1 − λ) invariance + λ SIGReg."""
    slices: int = 1024
    of: Literal["joint", "streams"] = "joint"
    """Embeddings of the concatenated features, or of each stream by itself, the mean of whose losses is taken."""
    hidden: int = 256
    """Width inside the projection heads."""
    width: int = 128
    """Of the embeddings."""


@dataclasses.dataclass(frozen=True)
class BarlowConfig:
    """Barlow Twins; see barlow.py. On structures with masked atoms and edges it is Crystal Twins."""

    weight: float = 1.0
    off_diagonal: float = 0.005
    """λ at a width of 8192; it grows as the width shrinks."""
    level: Level = "graph"
    hidden: tuple[int, ...] = (256, 256, 256)
    width: int = 128


@dataclasses.dataclass(frozen=True)
class SimSiamConfig:
    """Each view shall predict the other, which stands still; see simsiam.py."""

    weight: float = 1.0
    level: Level = "graph"
    hidden: int = 256
    width: int = 128


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """L = Σ_k w_k L_k over the terms that are named; null or nothing leaves one out."""

    denoise: DenoiseConfig | None = None
    masked: MaskedConfig | None = None
    lejepa: LeJEPAConfig | None = None
    barlow: BarlowConfig | None = None
    simsiam: SimSiamConfig | None = None

    def terms(self) -> dict[str, DenoiseConfig | MaskedConfig | LeJEPAConfig | BarlowConfig | SimSiamConfig]:
        """Those that are there, by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) is not None}

    def check(self, where: str) -> None:
        """UserError for values that make no sense."""
        if not self.terms():
            names = ", ".join(f.name for f in dataclasses.fields(self))
            raise UserError(f"{where} names no term; expected at least one of {names}, e.g. denoise: {{}}")
        for name, term in self.terms().items():
            if not term.weight > 0:
                raise UserError(f"{where}.{name}.weight: expected a number above 0, got {term.weight}; null leaves a term out")
        if self.lejepa is not None:
            lejepa = self.lejepa
            if not 0 <= lejepa.sigreg <= 1:
                raise UserError(f"{where}.lejepa.sigreg: expected a number in 0 … 1, got {lejepa.sigreg}")
            if not (lejepa.graph >= 0 and lejepa.node >= 0 and lejepa.graph + lejepa.node > 0):
                raise UserError(f"{where}.lejepa: graph and node must be 0 or more, and not both 0")
            if lejepa.slices < 1:
                raise UserError(f"{where}.lejepa.slices: expected 1 or more, got {lejepa.slices}")
