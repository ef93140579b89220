"""Which arrays packed structures are, and what ``index.json`` says of them."""

from __future__ import annotations

import dataclasses
from typing import Any

from numpy.typing import NDArray

from triforces_deploy.property_config import PropertyConfig

FORMAT = 2
INDEX = "index.json"

OF_ATOMS: dict[str, tuple[str, tuple[int, ...]]] = {
    "numbers": ("u1", ()),
    "positions": ("f8", (3,)),
    "forces": ("f8", (3,)),
    "degree": ("i4", ()),
}
"""Type and shape per atom; ``degree`` counts the edges of which it is the centre. Labels that are not known are NaN."""

OF_EDGES: dict[str, tuple[str, tuple[int, ...]]] = {"neighbour": ("i4", ()), "shift": ("i1", (3,))}
"""Sorted by centre. The neighbour is counted from the structure's first atom; the shift is in cell vectors."""

OF_STRUCTURES: dict[str, tuple[str, tuple[int, ...]]] = {
    "n_atoms": ("i4", ()),
    "n_edges": ("i8", ()),
    "cell": ("f8", (3, 3)),
    "pbc": ("?", (3,)),
    "energy": ("f8", ()),
    "stress": ("f8", (3, 3)),
    "trajectory": ("i4", ()),
    "file": ("i4", ()),
    "row": ("i8", ()),
}
"""``trajectory`` and ``file`` count in the lists of the index; ``row`` is the structure's place in its file."""

LAYOUT = OF_ATOMS | OF_EDGES | OF_STRUCTURES
"""Every array but the targets, which are ``target.NAME``: float64, (S, K) or (A, K) with K components."""

Arrays = dict[str, NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class Index:
    """What ``index.json`` says."""

    cutoff: float
    """Å, of the neighbour lists."""
    elements: tuple[str, ...]
    """That occur."""
    files: tuple[str, ...]
    trajectories: tuple[str, ...]
    undeclared: tuple[int, ...]
    """Those of them that no file names, which are file name and formula."""
    targets: tuple[str, ...]
    """Properties besides energy, forces and stress."""
    components: tuple[int, ...]
    """Numbers of one value of each target."""
    of_atoms: tuple[str, ...]
    """Targets that atoms have; structures have the others."""

    def target_layout(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of each target's array, by the name of the array."""
        return {f"target.{name}": ("f8", (n,)) for name, n in zip(self.targets, self.components, strict=True)}

    def rows_of(self, name: str) -> str:
        """What the rows of an array are: 'atoms', 'edges' or 'structures'."""
        if name in OF_ATOMS or name.removeprefix("target.") in self.of_atoms:
            return "atoms"
        return "edges" if name in OF_EDGES else "structures"

    def misfit(self, wanted: PropertyConfig) -> str:
        """Why the target is not the wanted property; '' where it is, or where there is none of the name."""
        if wanted.name not in self.targets:
            return ""
        components, of = (
            self.components[self.targets.index(wanted.name)],
            "atom" if wanted.name in self.of_atoms else "structure",
        )
        if (components, of) == (wanted.components(), wanted.of):
            return ""
        return f"has {components} numbers per {of}, and a {wanted.kind} has {wanted.components()} per {wanted.of}"
