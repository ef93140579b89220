"""One pair style's potential: from the atoms that LAMMPS lists to energies and pair forces."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from ase.data import atomic_numbers
from torch import Tensor

from triforces_deploy.errors import UserError
from triforces_deploy.graph import N_NUMBERS, Graph
from triforces_deploy.lammps_plugin import startup
from triforces_deploy.lammps_plugin.halo import Halo, Swap
from triforces_deploy.potential import Potential


class StepLike(Protocol):
    """``tf_step`` of ``src/abi.h``: sizes and addresses of one evaluation."""

    rows: int
    owned: int
    edges: int
    numbers: int | None
    edge_index: int | None
    edge_vector: int | None
    counts: int | None
    energies: int | None
    edge_forces: int | None
    uncertainty: int | None


class Session:
    """A loaded potential and what it needs of the pair style that runs it.

    Args:
        potential: the potential.
        file: where it came from, for messages.
        swap: the function of the C++ side that moves rows between ranks.
        pair: the pair style, handed to ``swap``.
    """

    def __init__(self, potential: Potential, file: str, swap: Swap, pair: int | None) -> None:
        self.potential = potential
        self._file = file
        self._halo = Halo(swap, pair)
        self._ranks = 1
        # LAMMPS reads the results after compute() has returned.
        self._results: tuple[Tensor, ...] = ()

    def map(self, names: Sequence[str]) -> list[int]:
        """Atomic numbers of the names in pair_coeff, 0 for NULL; UserError for a name the potential does not know."""
        known = self.potential.facts.elements
        for name in names:
            if name not in known and name != "NULL":
                near = difflib.get_close_matches(name.capitalize(), known, n=1, cutoff=0.5)
                hint = f"; did you mean '{near[0]}'?" if near else ""
                raise UserError(f"pair_coeff: element {name} is not in {self._file}, which knows {', '.join(known)}{hint}")
        return [0 if name == "NULL" else int(atomic_numbers[name]) for name in names]

    def start(self, run: startup.Run) -> str:
        """Check the run as a whole and return the block that describes it; UserError where it would be wrong."""
        startup.check(self.potential.facts, run)
        self.potential.check_elements(torch.tensor(sorted(run.counts), dtype=torch.int64))
        self._ranks = run.ranks
        return startup.describe(self.potential, self._file, run, torch.get_num_threads())

    def compute(self, step: StepLike) -> None:
        """Evaluate one step and leave the addresses of energies (rows), pair forces (edges, 3), uncertainty (rows) in it."""
        graph = _graph(step)
        evaluation = self.potential.evaluate(graph, self._halo if self._ranks > 1 else None)
        energies = evaluation.energies.detach().to(torch.float64).contiguous()
        edge_forces = evaluation.edge_forces.detach().to(torch.float64).contiguous()
        if energies.shape != graph.numbers.shape or edge_forces.shape != graph.edge_vector.shape:
            raise RuntimeError(f"expected energies {tuple(graph.numbers.shape)}, got {tuple(energies.shape)}")
        self._results = energies, edge_forces
        step.energies, step.edge_forces, step.uncertainty = energies.data_ptr(), edge_forces.data_ptr(), None
        if evaluation.uncertainty is not None:
            uncertainty = evaluation.uncertainty.detach().to(torch.float64).contiguous()
            self._results = energies, edge_forces, uncertainty
            step.uncertainty = uncertainty.data_ptr()


def _graph(step: StepLike) -> Graph:
    owned = torch.zeros(step.rows, dtype=torch.bool)
    owned[: step.owned] = True
    return Graph(
        numbers=_view(step.numbers, (step.rows,), "<i8"),
        edge_index=_view(step.edge_index, (2, step.edges), "<i8"),
        edge_vector=_view(step.edge_vector, (step.edges, 3), "<f8"),
        batch=torch.zeros(step.rows, dtype=torch.int64),
        owned=owned,
        composition=_view(step.counts, (1, N_NUMBERS), "<i8").to(torch.float64),
        cell=torch.zeros(1, 3, 3, dtype=torch.float64),
    )


class _Memory:
    """Memory of LAMMPS in the form numpy reads; unlike a ctypes array it makes no new type for every length."""

    def __init__(self, address: int, shape: tuple[int, ...], kind: str) -> None:
        self.__array_interface__ = {"data": (address, False), "shape": shape, "typestr": kind, "version": 3}


def _view(address: int | None, shape: tuple[int, ...], kind: str) -> Tensor:
    """A tensor on memory of LAMMPS, valid during one step."""
    if address is None or 0 in shape:
        return torch.from_numpy(np.zeros(shape, kind))
    return torch.from_numpy(np.asarray(_Memory(address, shape, kind)))
