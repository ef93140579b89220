"""What views of a structure may look like."""

from __future__ import annotations

import dataclasses
from typing import Literal

from triforces_deploy.errors import UserError

Augmentation = Literal["mask", "cell", "graph", "tile", "vacancies", "edges"]
Strategy = Literal["atom", "element", "region"]


@dataclasses.dataclass(frozen=True)
class ViewsConfig:
    """Two views are made of each structure, alike in nothing but this; ranges are drawn from uniformly, for each view.

    Noise is in every view and counts as one of ``most``; of ``draw`` each is in with probability ``chance``, as far as there
    is room. A turned structure is the same structure: rotations do not count.
    """

    noise: tuple[float, ...] = (0.05, 0.3)
    """Å. Range of the standard deviation of a component of the displacements, whose mean is taken off."""
    rotate: bool = True
    """Turn by a random rotation or reflection, uniform over O(3)."""
    draw: tuple[Augmentation, ...] = ("mask", "cell", "graph")
    chance: float = 0.5
    most: int = 3
    """Augmentations of one view."""
    masked: float = 0.3
    """'mask': fraction of the atoms; of elements, one is masked whole where there are several."""
    strategies: tuple[Strategy, ...] = ("atom", "element", "region")
    """Each atom by itself, a whole element, or the atoms next to one of them; one of these is drawn."""
    cell: tuple[float, ...] = (0.01, 0.03)
    """'cell': range of the standard deviation of the strain's diagonal. The atoms go with the cell."""
    radius: tuple[float, ...] = (4.0, 6.0)
    """Å. 'graph': range of the cutoff; never more than the model's."""
    neighbours: tuple[int, ...] = (20, 120)
    """'graph': range of how many nearest neighbours are kept."""
    tiles: int = 2
    """'tile': how often the structure is repeated along one of its periodic directions."""
    most_atoms: int = 512
    """No structure is repeated to more atoms than this."""
    vacancies: float = 0.05
    """'vacancies': fraction of the atoms that are left out, at least one; never the last two."""
    edges: float = 0.1
    """'edges': fraction of the edges that are left out."""

    def check(self, where: str) -> None:
        """UserError for values that make no sense."""
        for name in ("noise", "cell", "radius", "neighbours"):
            found = getattr(self, name)
            if len(found) != 2 or not 0 <= found[0] <= found[1]:
                raise UserError(f"{where}.{name}: expected two numbers, the lower one first, got {list(found)}")
        if self.noise[1] <= 0 or self.radius[0] <= 0 or self.neighbours[0] < 1:
            raise UserError(f"{where}: noise and radius must be above 0 and neighbours at least 1")
        for name in ("chance", "masked", "vacancies", "edges"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{where}.{name}: expected a number in 0 … 1, got {getattr(self, name)}")
        for name, least in {"most": 1, "tiles": 1, "most_atoms": 1}.items():
            if getattr(self, name) < least:
                raise UserError(f"{where}.{name}: expected {least} or more, got {getattr(self, name)}")
        if not self.strategies:
            raise UserError(f"{where}.strategies: name at least one of atom, element, region")
