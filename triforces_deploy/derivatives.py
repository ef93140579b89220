"""Forces and virial from the derivative of the energy with respect to the edge vectors, taken once for all streams.

With f_e = ∂E/∂r_e and r_e = x_j − x_i:  F_i = Σ_{e: centre i} f_e − Σ_{e: neighbour i} f_e  and  V·σ = Σ_e sym(r_e ⊗ f_e).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from triforces_deploy.graph import Graph
from triforces_deploy.nn.scatter import scatter_sum


class Derivative(NamedTuple):
    """Energies and what follows from them by differentiation."""

    energies: Tensor
    """(N,) float64, eV. Energy of each atom, zero for atoms that are not owned."""

    edge_forces: Tensor
    """(E, 3) float64, eV/Å. f_e = ∂E/∂r_e, what LAMMPS calls a pair force."""


class Evaluation(NamedTuple):
    """What a potential returns; everything else follows from it."""

    energies: Tensor
    """(N,) float64, eV. Energy of each atom, zero for atoms that are not owned."""

    edge_forces: Tensor
    """(E, 3) float64, eV/Å. f_e = ∂E/∂r_e, what LAMMPS calls a pair force."""

    uncertainty: Tensor | None = None
    """(N,) float64, eV. Standard deviation of each atom's energy; None where the potential does not tell."""

    forces: Tensor | None = None
    """(N, 3) float64, eV/Å. Where direct heads predict them: no derivative of the energies, unlike ``edge_forces``."""

    stress: Tensor | None = None
    """(G, 3, 3) float64, eV/Å³. Likewise; NaN where no head predicts it."""


def evaluate(energies_of: Callable[[Graph], Tensor], graph: Graph, create_graph: bool = False) -> Derivative:
    """Evaluate a model and differentiate it.

    Args:
        energies_of: per-atom energies (N,) of a graph, in eV.
        graph: the structures.
        create_graph: keep the graph of the derivative, for training on forces.
    """
    with torch.enable_grad():
        edge_vector = graph.edge_vector.detach().requires_grad_(True)
        raw = energies_of(graph._replace(edge_vector=edge_vector))
        energies = torch.where(graph.owned, raw, torch.zeros_like(raw))
        (edge_forces,) = torch.autograd.grad(energies.sum(), edge_vector, create_graph=create_graph)
    return Derivative(energies if create_graph else energies.detach(), edge_forces)


def energy(energies: Tensor, graph: Graph) -> Tensor:
    """(G,) eV. Energies of the structures."""
    return scatter_sum(energies, graph.batch, graph.composition.shape[0])


def forces(edge_forces: Tensor, graph: Graph) -> Tensor:
    """(N, 3) eV/Å."""
    n = graph.numbers.shape[0]
    return scatter_sum(edge_forces, graph.edge_index[1], n) - scatter_sum(edge_forces, graph.edge_index[0], n)


def virial(edge_forces: Tensor, graph: Graph) -> Tensor:
    """(G, 3, 3) eV, symmetric. V·σ = ∂E/∂strain, in ASE's sign; LAMMPS' virial is its negative."""
    outer = graph.edge_vector[:, :, None] * edge_forces[:, None, :]
    symmetric = 0.5 * (outer + outer.transpose(1, 2))
    return scatter_sum(symmetric, graph.batch[graph.edge_index[1]], graph.composition.shape[0])


def stress(edge_forces: Tensor, graph: Graph) -> Tensor:
    """(G, 3, 3) eV/Å³ in ASE's sign; NaN where the structure has no volume."""
    volume = torch.linalg.det(graph.cell).abs()
    volume = torch.where(volume > 0, volume, torch.full_like(volume, float("nan")))
    return virial(edge_forces, graph) / volume[:, None, None]
