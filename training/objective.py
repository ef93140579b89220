"""Predictions with derivatives, the loss, and the figures by which fits are judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from triforces_deploy import derivatives
from triforces_deploy.graph import Graph
from triforces_deploy.nn.scatter import scatter_sum
from triforces_deploy.training.recipe import Form, LossConfig
from triforces_deploy.training.structures import Sample


class Prediction(NamedTuple):
    """What a model says of a batch; shapes, units and sign as in :class:`~triforces_deploy.training.structures.Sample`."""

    energy: Tensor
    forces: Tensor
    stress: Tensor


class Losses(NamedTuple):
    """The weighted sum and its unweighted parts, each ()."""

    total: Tensor
    energy: Tensor
    forces: Tensor
    stress: Tensor


def predict(energies_of: Callable[[Graph], Tensor], graph: Graph, create_graph: bool = False) -> Prediction:
    """Energy, forces and stress of a batch from one derivative.

    A structure without volume gets its virial in place of a stress: a NaN there would reach every weight through the
    gradient, although no label is ever compared with it.
    """
    energies, edge_forces = derivatives.evaluate(energies_of, graph, create_graph)
    flat = torch.linalg.det(graph.cell) == 0
    solid = graph._replace(cell=torch.where(flat[:, None, None], torch.eye(3).to(graph.cell), graph.cell))
    return Prediction(
        derivatives.energy(energies, graph), derivatives.forces(edge_forces, graph), derivatives.stress(edge_forces, solid)
    )


def losses(prediction: Prediction, sample: Sample, config: LossConfig) -> Losses:
    """Mean over structures of each structure's own loss; see :class:`LossConfig`. Missing stresses do not count."""
    n_atoms = sample.graph.composition.sum(dim=1)  # (G,)
    n_structures = len(n_atoms)
    delta = config.huber_delta
    per_atom = (prediction.energy - sample.energy) / n_atoms
    energy = _penalty(per_atom[:, None], config.energy_form, delta).mean()
    of_atoms = _penalty(prediction.forces - sample.forces, config.forces_form, delta)  # (N,)
    forces = (scatter_sum(of_atoms, sample.graph.batch, n_structures) / n_atoms).mean()
    known = _has_stress(sample)
    # Chosen before the penalty: a NaN that is masked after it would still poison the gradient.
    of_structures = _penalty((prediction.stress - sample.stress)[known].reshape(-1, 9), config.stress_form, delta)
    stress = of_structures.sum() / max(1, len(of_structures))
    total = config.energy * energy + config.forces * forces + config.stress * stress
    return Losses(total, energy, forces, stress)


def _penalty(error: Tensor, form: Form, delta: float) -> Tensor:
    """(K, D) errors → (K,)."""
    if form == "l2":
        # The length has no derivative at zero; the tiny offset gives it one.
        return (error.square().sum(dim=1) + 1e-18).sqrt()
    if form == "mae":
        return error.abs().mean(dim=1)
    if form == "mse":
        return error.square().mean(dim=1)
    return functional.huber_loss(error, torch.zeros_like(error), reduction="none", delta=delta).mean(dim=1)


def _has_stress(sample: Sample) -> Tensor:
    return sample.stress.isfinite().all(dim=(1, 2))


@dataclasses.dataclass(frozen=True)
class Metrics:
    """Errors over a set of structures; every structure, atom component or stress component counts the same."""

    structures: int
    atoms: int
    energy_mae: float
    """meV/atom."""
    energy_rmse: float
    """meV/atom."""
    forces_mae: float
    """meV/Å, of components."""
    forces_rmse: float
    """meV/Å, of components."""
    forces_rms: float
    """meV/Å. Of the labels, what a prediction of zero would score."""
    forces_percent: float
    """RMSE in percent of the RMS force; NaN where all labels vanish."""
    stress_mae: float | None
    """meV/Å³, of the nine components; None without labels."""
    stress_rmse: float | None
    """meV/Å³."""

    def line(self) -> str:
        """Root mean squares, for a person."""
        stress = "" if self.stress_rmse is None else f", stress {self.stress_rmse:.3g} meV/Å³"
        return (
            f"RMSE energy {self.energy_rmse:.3g} meV/atom, forces {self.forces_rmse:.4g} meV/Å ({self.forces_percent:.1f} %)"
            f"{stress}"
        )

    def row(self) -> dict[str, float]:
        """Errors by their columns in the log."""
        errors = ("energy_mae", "energy_rmse", "forces_mae", "forces_rmse", "stress_mae", "stress_rmse")
        return {
            f"val_{name}": value for name, value in dataclasses.asdict(self).items() if name in errors and value is not None
        }


class Tally:
    """Adds up errors batch by batch, in float64."""

    def __init__(self) -> None:
        self._sums = torch.zeros(10, dtype=torch.float64)

    def add(self, prediction: Prediction, sample: Sample) -> None:
        """Count one batch."""
        n_atoms = sample.graph.composition.sum(dim=1)
        energy = ((prediction.energy - sample.energy) / n_atoms).detach()
        forces = (prediction.forces - sample.forces).detach()
        known = _has_stress(sample)
        stress = (prediction.stress - sample.stress)[known].detach()
        row: list[Tensor | int] = [
            len(energy), len(forces), energy.abs().sum(), energy.square().sum(), forces.abs().sum(), forces.square().sum(),
            sample.forces.square().sum(), len(stress), stress.abs().sum(), stress.square().sum(),
        ]  # fmt: skip
        self._sums += torch.tensor([float(x) for x in row], dtype=torch.float64)

    def metrics(self) -> Metrics:
        """The figures of everything added so far, at least one structure."""
        g, n, e1, e2, f1, f2, label2, s, s1, s2 = self._sums.tolist()
        return Metrics(
            structures=int(g),
            atoms=int(n),
            energy_mae=1000 * e1 / g,
            energy_rmse=1000 * (e2 / g) ** 0.5,
            forces_mae=1000 * f1 / (3 * n),
            forces_rmse=1000 * (f2 / (3 * n)) ** 0.5,
            forces_rms=1000 * (label2 / (3 * n)) ** 0.5,
            forces_percent=100 * (f2 / label2) ** 0.5 if label2 else float("nan"),
            stress_mae=1000 * s1 / (9 * s) if s else None,
            stress_rmse=1000 * (s2 / (9 * s)) ** 0.5 if s else None,
        )
