"""ASE's view of an artifact: the same numbers as LAMMPS."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray
from torch import Tensor

from triforces_deploy import checkpoint, derivatives, kernels
from triforces_deploy.allocator import keep_freed_memory
from triforces_deploy.artifact import load
from triforces_deploy.direct import without_torque
from triforces_deploy.eager import as_trained
from triforces_deploy.errors import UserError
from triforces_deploy.graph import Graph
from triforces_deploy.neighbours import CachedNeighbours
from triforces_deploy.potential import Potential


class TriForcesCalculator(Calculator):
    """Energies, forces and stress of an exported potential.

    Where the model tells how uncertain the energy of each atom is, ``results["energies_std"]`` has it, (N,) eV. Where it
    predicts forces and stress directly, those are given, and what it takes from a molecule is their torque.

    Making one tunes the memory allocator of the process, see allocator.py. On a GPU it says on standard error whose kernels
    run, see kernels.py.

    Args:
        potential: path of an artifact, or one already loaded.
        skin: Å. The neighbour list is made for cutoff + skin and made again when an atom has moved half of it.
    """

    implemented_properties = [  # noqa: RUF012 - ASE's own contract
        "energy",
        "free_energy",
        "energies",
        "forces",
        "stress",
    ]

    def __init__(self, potential: str | Path | Potential, skin: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        keep_freed_memory()
        self.potential = potential if isinstance(potential, Potential) else load(potential)
        if self.potential.device.type != "cpu" or kernels.named():
            print(f"triforces-deploy: kernels: {self.potential.kernels}", file=sys.stderr)
        self._neighbours = CachedNeighbours(self.potential.facts.cutoff, skin)

    @classmethod
    def of_checkpoint(cls, path: str | Path, **kwargs: Any) -> TriForcesCalculator:
        """A model as it was trained or imported, eager: also one that export converts or refuses."""
        model, _ = checkpoint.load_fitted(Path(path))
        return cls(as_trained(model), **kwargs)

    def calculate(
        self, atoms: Atoms | None = None, properties: list[str] | None = None, system_changes: list[str] = all_changes
    ) -> None:
        """Fill ``results``: eV, eV/Å, eV/Å³ (Voigt, ASE's sign); no stress for what has no volume."""
        super().calculate(atoms, properties, system_changes)
        structure = cast(Atoms, self.atoms)
        graph = self._neighbours.graph(structure)
        with torch.no_grad():
            result = self.potential.evaluate(graph)
            self.results = _results(result, graph, torch.from_numpy(structure.positions))
        if not np.isfinite(self.results["forces"]).all() or not np.isfinite(self.results["energy"]):
            raise UserError("the potential returned NaN or infinity; look for overlapping or lost atoms in the structure")


def _results(result: derivatives.Evaluation, graph: Graph, positions: Tensor) -> dict[str, float | NDArray[np.float64]]:
    energy, free = float(result.energies.sum()), not bool(graph.cell.any())
    forces, stress = result.forces, result.stress
    if forces is None:
        forces = derivatives.forces(result.edge_forces, graph)
    elif free:
        forces = without_torque(forces, positions)
    results: dict[str, float | NDArray[np.float64]] = {
        "energy": energy,
        "free_energy": energy,
        "energies": result.energies.numpy(),
        "forces": forces.numpy(),
    }
    if result.uncertainty is not None:
        results["energies_std"] = result.uncertainty.numpy()
    if not free:
        stress = derivatives.stress(result.edge_forces, graph) if stress is None else stress
        if not bool(stress.isnan().any()):
            results["stress"] = full_3x3_to_voigt_6_stress(stress[0].numpy())
    return results
