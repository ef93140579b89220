"""What training works on: structures as graphs, with their labels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple, overload

import torch
from torch import Tensor

from triforces_deploy.graph import Graph, collate


class Sample(NamedTuple):
    """One structure, or a batch of them, with its labels; N atoms, G structures."""

    graph: Graph
    energy: Tensor
    """(G,) float64, eV; NaN where there is no label, as below."""
    forces: Tensor
    """(N, 3) float64, eV/Å."""
    stress: Tensor
    """(G, 3, 3) float64, eV/Å³, ASE's sign."""
    weights: Tensor | None = None
    """(N,) float64. How much the force of each atom counts in training; alike where it is not given."""
    targets: Mapping[str, Tensor] = {}
    """Other properties by name, (G, K) or (N, K) float64 with K = 1, 3 or 9 components."""


class Samples(Sequence[Sample]):
    """Samples one by one, made when they are asked for, by whoever can give several side by side."""

    @abstractmethod
    def batch(self, chosen: Sequence[int]) -> Sample:
        """Some structures side by side, in the order asked for."""

    @overload
    def __getitem__(self, k: int) -> Sample: ...
    @overload
    def __getitem__(self, k: slice) -> list[Sample]: ...
    def __getitem__(self, k: int | slice) -> Sample | list[Sample]:
        if isinstance(k, slice):
            return [self[i] for i in range(*k.indices(len(self)))]
        return self.batch([range(len(self))[k]])


class Frame(NamedTuple):
    """A sample and where it comes from."""

    sample: Sample
    trajectory: str
    """The path of configurations that it belongs to: frames of one trajectory are never split."""
    declared: bool
    """Whether the file names the trajectory; otherwise it is file name and chemical formula."""
    name: str
    """File and frame in ASE's notation, ``file@index``, counted from 0."""


def join(samples: Sequence[Sample]) -> Sample:
    """Samples side by side as one batch."""
    return Sample(
        graph=collate([s.graph for s in samples]),
        energy=torch.cat([s.energy for s in samples]),
        forces=torch.cat([s.forces for s in samples]),
        stress=torch.cat([s.stress for s in samples]),
        targets={name: torch.cat([s.targets[name] for s in samples]) for name in samples[0].targets},
    )
