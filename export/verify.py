"""Is what runs the same as what was trained? Energies, forces and stress of one potential against another."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from ase import Atoms
from torch import Tensor

from triforces_deploy import derivatives
from triforces_deploy.artifact import Metadata, Parity
from triforces_deploy.errors import UserError
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.potential import Potential
from triforces_deploy.precision import PRECISIONS


@dataclasses.dataclass(frozen=True)
class Deviation:
    """Largest absolute deviation over the components of one quantity of one structure, and the quantity's own size."""

    quantity: str
    """'energy' (per atom, eV), 'forces' (eV/Å), 'stress' (as the virial V·σ in eV, which molecules have too) or 'uncertainty'
    (per atom, eV)."""
    structure: str
    atoms: int
    deviation: float
    scale: float


QUANTITIES = ("energy", "forces", "stress")
SLACK = 1000.0
"""How much more an uncertainty may differ: directions that training knows least enlarge the rounding of the features."""


def compare(candidate: Potential, reference: Potential, structures: Mapping[str, Atoms]) -> list[Deviation]:
    """Evaluate both potentials on every structure.

    Args:
        candidate: what will run.
        reference: what it must equal; same cutoff.
        structures: name → atoms.

    Returns:
        One row per structure and quantity.
    """
    rows = []
    for name, atoms in structures.items():
        graph = graph_from_atoms(atoms, candidate.facts.cutoff)
        new, old = candidate.evaluate(graph), reference.evaluate(graph)
        pairs = {
            "energy": (new.energies, old.energies),
            "forces": (derivatives.forces(new.edge_forces, graph), derivatives.forces(old.edge_forces, graph)),
            "stress": (derivatives.virial(new.edge_forces, graph), derivatives.virial(old.edge_forces, graph)),
        }
        if new.uncertainty is not None and old.uncertainty is not None:
            pairs["uncertainty"] = new.uncertainty, old.uncertainty
        rows += [Deviation(q, name, len(atoms), _largest(x - y), _largest(y)) for q, (x, y) in pairs.items()]
    return rows


def parity(backend: str, reference: str, rows: list[Deviation], tolerance: float) -> Parity:
    """Condense a comparison to the largest relative deviation of each quantity over the structures."""
    energy, forces, stress = (_relative([r for r in rows if r.quantity == quantity]) for quantity in QUANTITIES)
    spread = [r for r in rows if r.quantity == "uncertainty"]
    structures = len({r.structure for r in rows})
    return Parity(backend, reference, structures, energy, forces, stress, tolerance, _relative(spread) if spread else None)


def tolerance(precision: str, own_rounding: float) -> float:
    """What a form may differ by from eager of the same precision, relative to the largest value.

    A form that is as near to float64 as it should be differs from eager by that and by eager's own rounding.

    Args:
        precision: a key of ``PRECISIONS``.
        own_rounding: the largest deviation of eager in that precision from eager in float64.
    """
    return bounded(precision, PRECISIONS[precision].parity + own_rounding)


def bounded(precision: str, found: float) -> float:
    """A tolerance that an export has found, within what a precision allows at all."""
    bounds = PRECISIONS[precision]
    return max(bounds.parity, min(found, bounds.parity_at_most))


def known_tolerance(metadata: Metadata) -> float:
    """That which the export of an artifact has found."""
    precision = metadata.facts.precision
    found = (row.tolerance for row in metadata.parity if row.reference == f"eager {precision}")
    return bounded(precision, max(found, default=0.0))


def largest(result: Parity) -> float:
    """The largest deviation of energy, forces and stress."""
    return max(result.energy, result.forces, result.stress)


def check(result: Parity) -> None:
    """UserError when a back end does not equal its reference; a NaN anywhere is a failure too."""
    worst = {"energy": result.energy, "forces": result.forces, "stress": result.stress, "uncertainty": result.uncertainty}
    for quantity, value in worst.items():
        allowed = result.tolerance * (SLACK if quantity == "uncertainty" else 1.0)
        if value is not None and not value <= allowed:
            raise UserError(
                f"{result.backend} differs from {result.reference}: {quantity} by {value:.2e} relative, "
                f"allowed {allowed:.0e}; do not use it, and report this model"
            )


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def _relative(rows: list[Deviation]) -> float:
    """Largest deviation over size. A size below a thousandth of the largest (an atom without forces) counts as that."""
    floor = 1e-3 * max((r.scale for r in rows), default=0.0)
    ratios = [r.deviation / max(r.scale, floor) if floor > 0 else r.deviation for r in rows]
    return max(ratios, key=lambda x: math.inf if math.isnan(x) else x, default=0.0)
