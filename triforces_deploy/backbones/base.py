"""What a backbone promises. Facts are declared, never guessed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from triforces_deploy.graph import Graph

Directions = Literal["none", "features", "harmonics"]


class Backbone(nn.Module, ABC):
    """A graph network that turns a :class:`~triforces_deploy.graph.Graph` into scalar features of its atoms.

    A subclass has a frozen dataclass ``Config`` of its sizes and is built as ``cls(config, cutoff, numbers)``, with the
    atomic numbers of the elements it may see. It computes in the type of its own parameters (cast ``graph.edge_vector``,
    which is float64), knows nothing of LAMMPS, MPI or export, and calls ``exchange(h)`` once before each layer that reads
    features which its neighbours have computed.
    """

    Config: ClassVar[Any]

    width: int
    """Features per atom that ``forward`` returns."""

    cutoff: float
    """Å. Edges longer than this do not exist; messages must vanish at it, with two derivatives."""

    n_exchanges: int
    """Calls of ``exchange`` in one forward pass; the same on every rank and for every structure."""

    receptive_field: float
    """Å. How far away an atom can be and still change the features of an atom: layers × cutoff."""

    smooth: bool
    """Whether the features have two continuous derivatives in the edge vectors."""

    conservative: bool
    """Whether it is meant for forces that are derivatives of the energy."""

    separable: bool
    """Whether far-apart structures do not see each other."""

    directions: Directions = "none"
    """From what direct heads can read forces: 'features' that are no invariants, 'harmonics' beside invariant features, or
    'none', where everything that the backbone gives is invariant. See direct.py."""

    bidirectional: bool
    """Whether an atom reads, besides the edges of which it is the centre, those of which it is the neighbour.

    With several ranks the centre of such an edge may be a ghost; the host then adds the mirrored edges to the list.
    """

    @abstractmethod
    def forward(self, graph: Graph) -> Tensor:
        """Features of the atoms, (N, width). Rows of ghost atoms may hold anything finite."""

    def with_harmonics(self, graph: Graph) -> tuple[Tensor, Tensor | None]:
        """Those features and, where ``directions`` is 'harmonics', coefficients of degrees 0 to 2, (N, 9, width)."""
        return self(graph), None
