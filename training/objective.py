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
from triforces_deploy.model import Model
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
    """Energy, forces and stress of a batch from one derivative; from direct heads where the model has them.

    A structure without volume gets its virial in place of a stress: a NaN there would reach every weight through the
    gradient, although no label is ever compared with it.
    """
    if isinstance(energies_of, Model) and energies_of.direct is not None:
        with torch.set_grad_enabled(create_graph):
            energies, read = energies_of.directly(graph)
        return Prediction(derivatives.energy(energies, graph), *read)
    energies, edge_forces = derivatives.evaluate(energies_of, graph, create_graph)
    flat = torch.linalg.det(graph.cell) == 0
    solid = graph._replace(cell=torch.where(flat[:, None, None], torch.eye(3).to(graph.cell), graph.cell))
    return Prediction(
        derivatives.energy(energies, graph), derivatives.forces(edge_forces, graph), derivatives.stress(edge_forces, solid)
    )


def losses(prediction: Prediction, sample: Sample, config: LossConfig) -> Losses:
    """Mean over structures of each structure's own loss; see :class:`LossConfig`. Missing labels do not count."""
    n_atoms = sample.graph.composition.sum(dim=1)  # (G,)
    delta = config.huber_delta
    # Labels are chosen before the penalty: a NaN that is masked after it would still poison the gradient.
    has_energy, has_forces, has_stress = _known_energy(sample), _known_forces(sample), _has_stress(sample)
    per_atom = ((prediction.energy - sample.energy) / n_atoms)[has_energy]
    energy = _mean(penalty(per_atom[:, None], config.energy_form, delta))
    of_atoms = penalty((prediction.forces - sample.forces)[has_forces], config.forces_form, delta)  # (N',)
    if sample.weights is not None:
        of_atoms = of_atoms * sample.weights[has_forces]
    owner, labelled = sample.graph.batch[has_forces], _labelled_atoms(sample)
    of_structures = scatter_sum(of_atoms, owner, len(n_atoms)) / labelled.clamp(min=1.0)
    forces = _mean(of_structures[labelled > 0])
    stress = _mean(penalty((prediction.stress - sample.stress)[has_stress].reshape(-1, 9), config.stress_form, delta))
    total = config.energy * energy + config.forces * forces + config.stress * stress
    return Losses(total, energy, forces, stress)


def known(sample: Sample) -> tuple[float, float, float]:
    """How many structures have an energy, forces, a stress: what the parts of :func:`losses` are means over."""
    found = _known_energy(sample), _labelled_atoms(sample) > 0, _has_stress(sample)
    return float(found[0].sum()), float(found[1].sum()), float(found[2].sum())


def _mean(values: Tensor) -> Tensor:
    return values.sum() / max(1, len(values))


def _known_energy(sample: Sample) -> Tensor:
    return sample.energy.isfinite()


def _known_forces(sample: Sample) -> Tensor:
    return sample.forces.isfinite().all(dim=1)


def _labelled_atoms(sample: Sample) -> Tensor:
    """(G,) float64. Atoms of each structure whose force is known."""
    return scatter_sum(_known_forces(sample).to(torch.float64), sample.graph.batch, len(sample.energy))


def penalty(error: Tensor, form: Form, delta: float) -> Tensor:
    """(K, D) errors → (K,); see :class:`LossConfig`."""
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
        self._sums = torch.zeros(12, dtype=torch.float64)

    def add(self, prediction: Prediction, sample: Sample) -> None:
        """Count one batch."""
        n_atoms = sample.graph.composition.sum(dim=1)
        has_forces = _known_forces(sample)
        energy = ((prediction.energy - sample.energy) / n_atoms).detach()[_known_energy(sample)]
        forces, labels = (prediction.forces - sample.forces).detach()[has_forces], sample.forces[has_forces]
        stress = (prediction.stress - sample.stress).detach()[_has_stress(sample)]
        row: list[Tensor | int] = [
            len(sample.energy), len(sample.forces), len(energy), len(forces), energy.abs().sum(), energy.square().sum(),
            forces.abs().sum(), forces.square().sum(), labels.square().sum(),
            len(stress), stress.abs().sum(), stress.square().sum(),
        ]  # fmt: skip
        self._sums += torch.tensor([float(x) for x in row], dtype=torch.float64)

    def metrics(self) -> Metrics:
        """The figures of everything added so far; NaN of what has no labels."""
        structures, atoms, g, n, e1, e2, f1, f2, label2, s, s1, s2 = self._sums.tolist()
        g, n = g or float("nan"), n or float("nan")  # without labels there is no error either
        return Metrics(
            structures=int(structures),
            atoms=int(atoms),
            energy_mae=1000 * e1 / g,
            energy_rmse=1000 * (e2 / g) ** 0.5,
            forces_mae=1000 * f1 / (3 * n),
            forces_rmse=1000 * (f2 / (3 * n)) ** 0.5,
            forces_rms=1000 * (label2 / (3 * n)) ** 0.5,
            forces_percent=100 * (f2 / label2) ** 0.5 if label2 else float("nan"),
            stress_mae=1000 * s1 / (9 * s) if s else None,
            stress_rmse=1000 * (s2 / (9 * s)) ** 0.5 if s else None,
        )
