"""What labels say of a model's units: energies of free elements, and the size of forces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from triforces_deploy import derivatives
from triforces_deploy.graph import N_NUMBERS, Graph
from triforces_deploy.training.structures import Sample


def fit_references(samples: Iterable[Sample]) -> Tensor:
    """Energies of free elements, (119,) float64 eV, least squares of energy per atom on element fractions.

    Where the data cannot tell elements apart (a compound of fixed composition) the solution of smallest norm is taken:
    it fits just as well and shares the energy evenly.
    """
    found = [(s.graph.composition[known], s.energy[known]) for s in samples for known in [s.energy.isfinite()]]
    counts = torch.cat([composition for composition, _ in found]).numpy()  # (G, 119)
    energy = torch.cat([energies for _, energies in found]).numpy()
    n_atoms = counts.sum(axis=1)
    solution, *_ = np.linalg.lstsq(counts / n_atoms[:, None], energy / n_atoms, rcond=1e-10)
    references = np.zeros(N_NUMBERS)
    seen = counts.sum(axis=0) > 0
    references[seen] = solution[seen]
    return torch.from_numpy(references)


def fit_scale(samples: Iterable[Sample]) -> Tensor:
    """Root mean square of the force components times 1 Å, () float64 eV; 1 where all forces vanish or none is known.

    Forces outnumber energies by 3N to one and carry most of the loss. With this unit a network whose output changes by
    about 1 per Å, which is how a fresh one behaves, has forces of the right size from the first step.
    """
    forces = torch.cat([s.forces for s in samples])
    scale = forces[forces.isfinite()].square().mean().sqrt()
    return scale if float(scale) > 1e-8 else torch.ones((), dtype=torch.float64)


def less_repulsion(samples: Iterable[Sample], repulsion: Callable[[Graph], Tensor]) -> Iterator[Sample]:
    """Labels without what a model with ``zbl`` adds itself, so that references and scale are those of its network.

    Args:
        samples: as labelled.
        repulsion: energies of the atoms of a graph, (N,) float64 eV; that of the model, whose form is one of several.
    """
    for sample in samples:
        energies, edge_forces = derivatives.evaluate(repulsion, sample.graph)
        energy = sample.energy - derivatives.energy(energies, sample.graph)
        yield sample._replace(energy=energy, forces=sample.forces - derivatives.forces(edge_forces, sample.graph))
