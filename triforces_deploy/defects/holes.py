"""Where an extra atom can sit beside an atom of a crystal."""

from __future__ import annotations

from typing import Literal

import numpy as np

from triforces_deploy.defects.surroundings import Floats, Surroundings

Site = Literal["tetrahedral", "hexagonal", "split110", "hole", "hole2", "hole3"]
SITES: tuple[Site, ...] = ("tetrahedral", "hexagonal", "split110")
"""Places in a diamond or zincblende crystal, by its bonds."""
ANYWHERE: tuple[Site, ...] = ("hole", "hole2", "hole3")
"""Places in any crystal: the widest hole beside the atom, the second, the third, by the corners of its Voronoi cell."""


def insertion(around: Surroundings, k: int, site: Site, rng: np.random.Generator) -> tuple[Floats | None, Floats] | None:
    """How far atom k steps aside, if it does, and the way from its old place to the added atom; (3,) Å each.

    'tetrahedral' sits one bond length behind an atom, 'hexagonal' in the middle of a ring of six, and 'split110' shares
    the place of an atom with it, the two side by side along ⟨110⟩. None where the atom has no four bonds, or no such hole.
    """
    if site in ANYWHERE:
        kinds = holes(around, k)
        wanted = ANYWHERE.index(site)
        return None if wanted >= len(kinds) else (None, kinds[wanted][rng.integers(len(kinds[wanted]))])
    bonds = bonds_of(around, k)
    if bonds is None:
        return None
    bonds = rng.permutation(bonds)
    if site == "tetrahedral":
        return None, -bonds[0]
    if site == "hexagonal":  # half-way to the next tetrahedral place
        return None, -bonds[0] - 0.5 * bonds[1]
    middle, side = -0.24 * (bonds[0] + bonds[1]), 0.3 * (bonds[0] - bonds[1])
    return middle + side, middle - side  # both step back from the two bonds that they approach


def bonds_of(around: Surroundings, k: int) -> Floats | None:
    """(4, 3) Å, from atom k to its bonded neighbours; None unless it has four and a gap before the fifth."""
    _, vectors = around.around(k, 6.0)
    distance = np.linalg.norm(vectors[:5], axis=1)
    if len(distance) < 5 or distance[3] > 1.25 * distance[0] or distance[4] < 1.3 * distance[0]:
        return None
    return vectors[:4]


def holes(around: Surroundings, k: int) -> list[Floats]:
    """Corners of the Voronoi cell of atom k, each as far from k as from at least three other atoms and from none less.

    Returns:
        Groups of equally wide ones, the widest first: (H, 3) Å from the atom. Corners closer than a twentieth of the nearest
        distance count as one.
    """
    from scipy.spatial import QhullError, Voronoi

    radius = min(7.0, around.reach)
    while True:
        _, vectors = around.around(k, radius)
        corners = None
        if len(vectors) >= 4:
            try:
                diagram = Voronoi(np.vstack([np.zeros(3), vectors]))
            except QhullError:  # flat
                diagram = None
            if diagram is not None and -1 not in (region := diagram.regions[diagram.point_region[0]]):
                corners = diagram.vertices[region]
        complete = corners is not None and 2 * float(np.linalg.norm(corners, axis=1).max()) < radius
        if complete or radius >= around.reach:
            break
        radius = min(1.5 * radius, around.reach)
    if not complete or corners is None:
        return []
    same = 0.05 * float(np.linalg.norm(vectors[0]))
    return _grouped(corners[np.argsort(-np.linalg.norm(corners, axis=1), kind="stable")], same)


def _grouped(corners: Floats, same: float) -> list[Floats]:
    """Corners, the farthest first, without repetitions and in groups that differ in distance."""
    groups: list[list[Floats]] = []
    seen: list[Floats] = []
    for corner in corners:
        if any(np.linalg.norm(corner - other) < same for other in seen):
            continue
        seen.append(corner)
        if groups and np.linalg.norm(groups[-1][0]) - np.linalg.norm(corner) < same / 5:
            groups[-1].append(corner)
        else:
            groups.append([corner])
    return [np.array(group) for group in groups]
