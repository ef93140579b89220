"""A sum over atoms in place of a nonlinear mean readout, fitted to the model's own energies and gradients.

A sum of affine atomic energies is N (w·h̄ + b), so what is sought is the affine function that comes nearest to the pooled
readout g(h̄) over some structures. Its values should be those of g, and its slope w that of g, because forces are the slope
times what every model shares, ∂Σh/∂x:

    Σ_s (w·h̄_s + b − g(h̄_s))² + λ Σ_s |w − g'(h̄_s)|²  →  min

The larger λ, the closer to the mean linearisation; the λ with the smallest errors of energies and forces is taken.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from ase import Atoms
from torch import Tensor

from triforces_deploy import derivatives
from triforces_deploy.errors import UserError
from triforces_deploy.graph import Graph
from triforces_deploy.heads import mean_over_atoms
from triforces_deploy.model import Model
from triforces_deploy.neighbour_cap import capped
from triforces_deploy.neighbours import graph_from_atoms

from .folding import with_affine_sum

FEWEST = 4
"""Structures. Every fourth is held out."""
MAX_ENERGY = 5.0
"""meV/atom, RMSE on held-out structures above which a fit is refused."""
MAX_FORCES = 10.0
"""Percent of the RMS force, likewise."""
STRENGTHS = (1e-3, 1e-1, 1e1, 1e3)
"""λ in units of the variance of a feature."""


@dataclasses.dataclass(frozen=True)
class Quality:
    """How far the fitted model is from the pooled one."""

    energy: float
    """meV/atom, RMSE."""
    forces: float
    """Percent of the RMS force, RMSE."""

    @property
    def score(self) -> float:
        """In units of what is allowed."""
        return max(self.energy / MAX_ENERGY, self.forces / MAX_FORCES)

    def line(self) -> str:
        """In words."""
        return f"energies differ by {self.energy:.2g} meV/atom, forces by {self.forces:.2g} % of their RMS"


def refit(model: Model, structures: Mapping[str, Atoms], elements: Sequence[str]) -> tuple[Model, str]:
    """Fit and judge.

    Args:
        model: float64, with a nonlinear mean readout.
        structures: like those that the fitted model will run on.
        elements: symbols that it may meet there.

    Returns:
        The model with a sum over atoms, and the line that says how good it is on structures left out of the fit.

    Raises:
        UserError: too few structures, an element the model does not know, or a fit that is too bad.
    """
    if len(structures) < FEWEST:
        raise UserError(f"--refit needs at least {FEWEST} structures, got {len(structures)}; every fourth is held out")
    _refuse_strange(elements, structures)
    cutoff, most = model.config.cutoff, model.config.max_neighbours
    graphs = [capped(graph_from_atoms(atoms, cutoff), most) for atoms in structures.values()]
    held_out, used = graphs[FEWEST - 1 :: FEWEST], [g for k, g in enumerate(graphs) if (k + 1) % FEWEST]
    candidates = [with_affine_sum(model, w, b) for w, b in _fits(model, used)]
    best = min(candidates, key=lambda candidate: _quality(candidate, model, used).score)
    quality = _quality(best, model, held_out)
    line = f"on {len(held_out)} structures left out of the fit {quality.line()}"
    if not quality.score <= 1.0:
        raise UserError(
            f"--refit: a sum over atoms cannot stand for this readout, {line}; allowed are {MAX_ENERGY:g} meV/atom and "
            f"{MAX_FORCES:g} %; give structures closer to what it will run, or train with model.readout: sum"
        )
    return best, line


def _refuse_strange(elements: Sequence[str], structures: Mapping[str, Atoms]) -> None:
    for name, atoms in structures.items():
        strange = sorted(set(atoms.get_chemical_symbols()) - set(elements))
        if strange or len(atoms) == 0:
            raise UserError(f"--refit: {name} holds {', '.join(strange) or 'no atoms'}; expected {', '.join(elements)}")


def _fits(model: Model, graphs: Sequence[Graph]) -> list[tuple[Tensor, Tensor]]:
    """Weights (1, width) and bias (1,) for each strength."""
    rows = []
    for graph in graphs:
        features = torch.cat(list(model.embeddings(graph).values()), dim=1)
        rows.append(mean_over_atoms(features, graph)[0])
    means = torch.cat(rows).detach().requires_grad_(True)  # (S, width)
    with torch.enable_grad():
        values = model.head.layers(means).squeeze(1)
        (slopes,) = torch.autograd.grad(values.sum(), means)
    x, y = means.detach() - means.detach().mean(0), values.detach()
    fits = []
    for strength in STRENGTHS:
        weight = len(x) * strength * float(x.square().mean().clamp(min=1e-12))
        matrix = x.T @ x + weight * torch.eye(x.shape[1], dtype=x.dtype)
        w = torch.linalg.solve(matrix, x.T @ (y - y.mean()) + weight * slopes.mean(0))
        fits.append((w[None], (y.mean() - w @ means.detach().mean(0))[None]))
    return fits


def _quality(candidate: Model, model: Model, graphs: Sequence[Graph]) -> Quality:
    energy, forces, size, n_atoms = 0.0, 0.0, 0.0, 0
    for graph in graphs:
        new, old = (derivatives.Derivative(*m.run(graph)) for m in (candidate, model))
        n = graph.numbers.shape[0]
        energy += float((new.energies.sum() - old.energies.sum()) / n) ** 2 / len(graphs)
        true = derivatives.forces(old.edge_forces, graph)
        forces += float((derivatives.forces(new.edge_forces, graph) - true).square().sum())
        size += float(true.square().sum())
        n_atoms += n
    return Quality(1000 * energy**0.5, 100 * (forces / max(size, 1e-12 * n_atoms)) ** 0.5)
