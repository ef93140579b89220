"""A neighbour list cut to the nearest atoms, for models that were trained on one.

Energies of such a model jump when an atom enters or leaves the list, so that its artifacts are marked as not smooth. Where
several neighbours share the last place all of them stay: which of them came first would depend on the order of the atoms.
The list becomes one-sided: an atom may see another that does not see it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from triforces_deploy.graph import Graph

TIE = 1e-3
"""Å. Neighbours this close to the last place share it: more than the rounding of positions in files, less than any shell."""


def nearest(graph: Graph, most: int) -> Tensor:
    """Which edges lead to the ``most`` nearest neighbours of each centre, ties included.

    Args:
        graph: E edges, all within the cutoff, in any order.
        most: at least 1.

    Returns:
        (E',) int64, rising indices of edges.
    """
    centre = graph.edge_index[1]
    distance = graph.edge_vector.detach().norm(dim=1)
    by_distance = distance.argsort()
    order = by_distance[centre[by_distance].argsort(stable=True)]  # by centre, then by distance
    counts = torch.bincount(centre, minlength=graph.numbers.shape[0])
    with_edges = counts > 0
    last = (counts.cumsum(0) - counts + counts.clamp(max=most) - 1)[with_edges]
    reach = distance.new_zeros(counts.shape[0])
    reach[with_edges] = distance[order[last]]
    return torch.nonzero(distance <= reach[centre] + TIE)[:, 0]


def capped(graph: Graph, most: int | None) -> Graph:
    """The graph with those edges only; ``None`` leaves it as it is."""
    if most is None:
        return graph
    kept = nearest(graph, most)
    return graph._replace(edge_index=graph.edge_index[:, kept], edge_vector=graph.edge_vector[kept])
