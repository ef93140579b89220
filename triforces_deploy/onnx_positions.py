"""The self-contained ONNX form: positions in, energy, forces and stress out, with the neighbour list inside the graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray

from triforces_deploy.artifact import Artifact, read_artifact
from triforces_deploy.errors import UserError
from triforces_deploy.neighbours import check_geometry, graph_from_atoms
from triforces_deploy.payloads.base import UNCERTAINTY, PayloadInfo, UnusableError
from triforces_deploy.payloads.onnx import runner
from triforces_deploy.potential import Facts

NAME = "onnx-positions"
"""In a file and on the command line."""
IMAGES = 3
"""Frozen unless asked otherwise: enough for cells whose planes are cutoff/3.5 apart, 1.7 Å for 6 Å."""
MARGIN = 1e-6
"""Of a period; what rounding may change in the number of images."""


class Result(NamedTuple):
    """What the graph returns; ASE's signs."""

    energy: float
    """eV."""
    energies: NDArray[np.float64]
    """(N,) eV."""
    forces: NDArray[np.float64]
    """(N, 3) eV/Å."""
    virial: NDArray[np.float64]
    """(3, 3) eV; stress times volume, which molecules have too."""
    stress: NDArray[np.float64]
    """(3, 3) eV/Å³; NaN where there is no volume."""
    uncertainty: NDArray[np.float64] | None = None
    """(N,) eV. Standard deviation of each atom's energy; None where the model does not tell."""


class PositionsModel:
    """Runs the graph, and refuses with a reason what the graph itself answers with NaN.

    Args:
        content: the ONNX model.
        info: what the file says of it; ``details`` hold the cutoff and the number of images.
        facts: of the potential.

    Raises:
        UserError: no ONNX Runtime here, or it refuses the model.
    """

    backend = NAME

    def __init__(self, content: bytes, info: PayloadInfo, facts: Facts) -> None:
        self.facts = facts
        self.images = int(info.details["images"])
        self._outputs = result_names(info.outputs)
        try:
            self._run = runner(content, info.precision)
        except UnusableError as error:
            raise UserError(f"{NAME}: {error}") from error

    def evaluate(self, atoms: Atoms) -> Result:
        """Energy, forces and stress of a structure.

        Raises:
            UserError: a cell that needs more images than are frozen, an element the model does not know, overlapping
                atoms, numbers that are not finite.
        """
        if len(atoms) == 0:  # no runtime has tensors without rows
            nothing = Result(0.0, np.zeros(0), np.zeros((0, 3)), np.zeros((3, 3)), np.full((3, 3), np.nan))
            return nothing._replace(uncertainty=np.zeros(0)) if UNCERTAINTY in self._outputs else nothing
        self.check(atoms)
        result = self.unchecked(atoms)
        if not np.isfinite(result.energy):
            graph_from_atoms(atoms, self.facts.cutoff)  # knows which atoms overlap
            raise UserError(f"{NAME} returned NaN; look for lost atoms in the structure")
        return result

    def check(self, atoms: Atoms) -> None:
        """Refuse a structure beyond what is frozen; UserError."""
        check_geometry(atoms)
        needed = images_needed(atoms.cell.array, atoms.pbc, self.facts.cutoff)
        if max(needed) > self.images:
            raise UserError(
                f"this cell needs {max(needed)} periodic images along axis {int(np.argmax(needed))}, the frozen graph has "
                f"{self.images}; repeat the cell, or export again with --images {max(needed)}"
            )
        allowed = self.facts.reference or self.facts.elements
        unknown = sorted({chemical_symbols[z] for z in atoms.numbers} - set(allowed))
        if unknown:
            raise UserError(f"element {', '.join(unknown)}: the frozen graph knows {', '.join(allowed)} only")

    def unchecked(self, atoms: Atoms) -> Result:
        """What the graph says by itself, as any other program sees it: NaN where :meth:`evaluate` refuses."""
        energy, *rest = self._run(inputs(atoms), self._outputs)
        return Result(float(energy), *rest)


def result_names(outputs: Sequence[str]) -> tuple[str, ...]:
    """Outputs of the graph, in the order of :class:`Result`, given those of the captured model."""
    return tuple(name for name in Result._fields if name != UNCERTAINTY or name in outputs)


def load(path: str | Path) -> PositionsModel:
    """Open the form in an artifact; UserError where there is none."""
    return from_artifact(read_artifact(Path(path)), str(path))


def from_artifact(artifact: Artifact, name: str) -> PositionsModel:
    """The same of an artifact that is read; ``name`` is how messages call it."""
    found = {info.backend: info for info in artifact.metadata.payloads}
    if NAME not in found:
        raise UserError(f"{name} holds no {NAME} payload; make one with `tfdeploy export CHECKPOINT --to {NAME}`")
    return PositionsModel(artifact.payloads[NAME], found[NAME], artifact.metadata.facts)


def inputs(atoms: Atoms) -> dict[str, NDArray[Any]]:
    """The graph's inputs: positions (N, 3), cell (3, 3), pbc (3,), numbers (N,)."""
    return {
        "positions": np.ascontiguousarray(atoms.positions, dtype=np.float64),
        "cell": np.ascontiguousarray(atoms.cell.array, dtype=np.float64),
        "pbc": np.asarray(atoms.pbc, dtype=np.bool_),
        "numbers": atoms.numbers.astype(np.int64),
    }


def images_needed(cell: NDArray[np.float64], pbc: NDArray[np.bool_], cutoff: float) -> tuple[int, int, int]:
    """Periods along each lattice vector that hold a neighbour, counted from the nearest image of a pair.

    Args:
        cell: (3, 3) Å.
        pbc: (3,).
        cutoff: Å.
    """
    dual = np.zeros((3, 3))
    if pbc.any():
        dual[pbc] = np.linalg.pinv(cell[pbc]).T
    first, second, third = np.floor(cutoff * np.linalg.norm(dual, axis=1) + 0.5 + MARGIN).astype(int).tolist()
    return first, second, third
