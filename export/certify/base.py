"""What all families of checks share: the subject, its evaluation, and the verdict on a number."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray

from triforces_deploy import derivatives
from triforces_deploy.certificate import Check, Verdict
from triforces_deploy.graph import Graph, collate
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.onnx_positions import PositionsModel
from triforces_deploy.potential import Facts, Potential

from .limits import LIMITS, Limits

Array = NDArray[np.float64]
BATCH = 384
"""Atoms that are evaluated together where structures are small; more would cost memory and gain no time."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is certified."""

    potential: Potential
    """The form whose physics is measured: what a loader takes here."""
    forms: Mapping[str, Potential]
    """Every form that runs here, by back end."""
    reference: Potential
    """Eager, in the same precision."""
    crystal: Atoms
    """A perfect periodic structure of the model's elements."""
    structures: Mapping[str, Atoms]
    """What parity is measured on."""
    inner_cutoffs: tuple[float, ...] = ()
    """Å. Where a part of the model ends before the cutoff does."""
    positions: PositionsModel | None = None
    """The form that takes structures instead of graphs, where the file holds it and it runs here."""
    exact: Potential | None = None
    """Eager in float64; None where that is the precision of the file."""
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Back end → why it does not run here."""
    path: Path | None = None
    """The file, for programs that read it themselves."""

    moving: str = "defect"
    """The one of ``structures`` that is run at constant energy."""
    reference_name: str = "eager"
    """How checks call the reference."""
    tolerance_found: float = 0.0
    """What the export of the file has let its forms differ by, where that is more than usual; see verify.py."""

    @property
    def facts(self) -> Facts:
        """Of the file."""
        return self.potential.facts

    @property
    def limits(self) -> Limits:
        """What its precision is held to."""
        return LIMITS[self.facts.precision]


@dataclasses.dataclass(frozen=True)
class Curve:
    """Numbers that are better drawn: y over x, one line for each label."""

    title: str
    x: Array
    x_label: str
    y: Mapping[str, Array]
    y_label: str
    marks: tuple[float, ...] = ()
    """Places on the x axis to point at."""
    y_limit: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Section:
    """The outcome of one family."""

    checks: tuple[Check, ...]
    curves: tuple[Curve, ...] = ()


class Evaluated(NamedTuple):
    """One structure as a potential sees it."""

    energy: float
    energies: Array
    """(N,) eV."""
    forces: Array
    """(N, 3) eV/Å."""
    virial: Array
    """(3, 3) eV; V·σ in ASE's sign."""


def evaluate(potential: Potential, structures: Sequence[Atoms]) -> list[Evaluated]:
    """Energies, forces and virials; small structures are evaluated together, which changes nothing but the time."""
    graphs = [graph_from_atoms(atoms, potential.facts.cutoff) for atoms in structures]
    results, start = [], 0
    while start < len(graphs):
        end, atoms = start + 1, len(structures[start])
        while end < len(graphs) and atoms + len(structures[end]) <= BATCH:
            atoms += len(structures[end])
            end += 1
        results += _evaluate(potential, graphs[start:end])
        start = end
    return results


def evaluate_positions(model: PositionsModel, atoms: Atoms) -> Evaluated:
    """The same of one structure that the form's frozen images cover."""
    result = model.evaluate(atoms)
    return Evaluated(result.energy, result.energies, result.forces, result.virial)


def _evaluate(potential: Potential, graphs: Sequence[Graph]) -> list[Evaluated]:
    graph = collate(graphs)
    with torch.no_grad():
        result = potential.evaluate(graph)
        forces = derivatives.forces(result.edge_forces, graph).numpy()
        virial = derivatives.virial(result.edge_forces, graph).numpy()
    ends = np.cumsum([g.numbers.shape[0] for g in graphs])[:-1]
    energies = np.split(result.energies.numpy(), ends)
    return [Evaluated(float(e.sum()), e, f, v) for e, f, v in zip(energies, np.split(forces, ends), virial, strict=True)]


def judged(
    family: str,
    name: str,
    value: float,
    threshold: float,
    sentence: str,
    unit: str = "",
    *,
    fail: float = 1.0,
    worst: Literal["warn", "fail"] = "fail",
) -> Check:
    """A check whose smaller value is the better one.

    Args:
        family: heading.
        name: of the check.
        value: what was measured; NaN or infinity fails whatever ``worst`` says.
        threshold: largest value that passes.
        sentence: what it means.
        unit: of value and threshold.
        fail: how many thresholds it takes to fail; between one and this it is a warning.
        worst: 'warn' where no value is a failure.
    """
    verdict: Verdict = "fail"
    if math.isfinite(value):
        verdict = "pass" if value <= threshold else "warn" if worst == "warn" or value <= fail * threshold else "fail"
    return Check(family, name, verdict, value if math.isfinite(value) else None, unit, threshold, sentence)


def skipped(family: str, name: str, why: str) -> Check:
    """A check that this machine or this model does not allow."""
    return Check(family, name, "skipped", None, "", None, why)


def largest(values: Array) -> float:
    """Largest absolute value; 0 of nothing, NaN where there is one."""
    return float(np.abs(values).max()) if values.size else 0.0
