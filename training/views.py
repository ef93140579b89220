"""Two views of a structure: functions of the structure, the seed, the pass over the data and the structure's index alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from triforces_deploy.errors import UserError
from triforces_deploy.graph import Graph, collate, count_elements
from triforces_deploy.neighbour_cap import capped
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.training.augmentations import (
    Structure,
    masked,
    noisy,
    strained,
    structure_of,
    tiled,
    turned,
    with_vacancies,
)
from triforces_deploy.training.batches import random_rotations
from triforces_deploy.training.objectives.base import Views
from triforces_deploy.training.view_config import Augmentation, ViewsConfig

ATTEMPTS = 8
"""At noise that leaves no two atoms on top of each other; each with half the noise of the one before."""


def view(atoms: Atoms, config: ViewsConfig, cutoff: float, rng: np.random.Generator) -> tuple[Graph, Structure, float]:
    """One view: its graph, what was done to the structure, and the standard deviation of its noise in Å.

    Args:
        atoms: the structure.
        config: what may be done.
        cutoff: Å, of the model; no edge is longer.
        rng: decides.

    Raises:
        UserError: atoms on top of each other, whatever the noise.
    """
    drawn = draw(config, rng)
    structure = structure_of(atoms)
    if "tile" in drawn:
        structure = tiled(structure, config.tiles, config.most_atoms, rng)
    if "vacancies" in drawn:
        structure = with_vacancies(structure, config.vacancies, rng)
    if "cell" in drawn:
        structure = strained(structure, _uniform(config.cell, rng), rng)
    radius, most = cutoff, None
    if "graph" in drawn:
        radius = min(cutoff, _uniform(config.radius, rng))
        most = int(rng.integers(config.neighbours[0], config.neighbours[1] + 1))
    structure, graph, sigma = _noisy_graph(structure, radius, config, rng)
    graph = capped(graph, most)
    if config.rotate:
        turn = random_rotations(1, rng)[0]
        structure = turned(structure, turn.numpy())
        graph = graph._replace(edge_vector=graph.edge_vector @ turn.T, cell=graph.cell @ turn.T)
    if "mask" in drawn:
        structure = masked(structure, config.masked, config.strategies[int(rng.integers(len(config.strategies)))], rng)
        graph = _masked_graph(graph, structure)
    if "edges" in drawn:
        kept = torch.from_numpy(rng.random(graph.edge_index.shape[1]) >= config.edges)
        graph = graph._replace(edge_index=graph.edge_index[:, kept], edge_vector=graph.edge_vector[kept])
    return graph, structure, sigma


def draw(config: ViewsConfig, rng: np.random.Generator) -> set[Augmentation]:
    """Which augmentations a view gets besides noise: at most ``most`` − 1."""
    order = [config.draw[k] for k in rng.permutation(len(config.draw))]
    return set([name for name in order if rng.random() < config.chance][: config.most - 1])


def _uniform(between: tuple[float, ...], rng: np.random.Generator) -> float:
    return float(rng.uniform(between[0], between[1]))


def _noisy_graph(
    structure: Structure, radius: float, config: ViewsConfig, rng: np.random.Generator
) -> tuple[Structure, Graph, float]:
    sigma = _uniform(config.noise, rng)
    for attempt in range(ATTEMPTS):
        moved = noisy(structure, sigma, rng)
        atoms = Atoms(numbers=moved.numbers, positions=moved.positions, cell=moved.cell, pbc=moved.pbc)
        try:
            return moved, graph_from_atoms(atoms, radius), sigma
        except UserError:
            if attempt + 1 == ATTEMPTS:
                raise
            sigma *= 0.5
    raise AssertionError("unreachable")


def _masked_graph(graph: Graph, structure: Structure) -> Graph:
    numbers = torch.where(torch.from_numpy(structure.masked), torch.zeros_like(graph.numbers), graph.numbers)
    return graph._replace(numbers=numbers, composition=count_elements(numbers, graph.batch, 1))


def two_views(chosen: Sequence[tuple[Atoms, Sequence[int]]], config: ViewsConfig, cutoff: float, key: int) -> Views:
    """A batch of pairs.

    Args:
        chosen: structures, each with the seed of its views.
        config: what may be done to them.
        cutoff: Å.
        key: of the batch.
    """
    found = [[view(atoms, config, cutoff, np.random.default_rng([*seed, side])) for atoms, seed in chosen] for side in range(2)]
    every = [*found[0], *found[1]]
    starts = np.cumsum([0, *(len(s.numbers) for _, s, _ in every)])
    pairs = [
        _pairs(a[1], b[1], int(starts[k]), int(starts[len(chosen) + k]))
        for k, (a, b) in enumerate(zip(found[0], found[1], strict=True))
    ]
    return Views(
        graph=collate([graph for graph, _, _ in every]),
        noise=torch.from_numpy(np.concatenate([s.noise for _, s, _ in every])),
        sigma=torch.cat([torch.full((len(s.numbers),), sigma, dtype=torch.float64) for _, s, sigma in every]),
        numbers=torch.from_numpy(np.concatenate([s.numbers for _, s, _ in every])),
        pairs=torch.cat(pairs, dim=1),
        key=key,
    )


def _pairs(first: Structure, second: Structure, start: int, other_start: int) -> Tensor:
    """(2, M) Rows of the atoms that both views have; of copies only the first counts."""
    _, a, b = np.intersect1d(first.origin, second.origin, return_indices=True)
    real = first.origin[a] >= 0
    return torch.from_numpy(np.stack([a[real] + start, b[real] + other_start]))
