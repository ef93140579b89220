"""One pair style's potential: from the atoms that LAMMPS lists to energies and pair forces."""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from ase.data import atomic_numbers
from torch import Tensor

from triforces_deploy.derivatives import Evaluation
from triforces_deploy.errors import UserError
from triforces_deploy.graph import N_NUMBERS, Graph
from triforces_deploy.lammps_plugin import startup
from triforces_deploy.lammps_plugin.exchange_test import WIDE_ROWS, self_test
from triforces_deploy.lammps_plugin.figures import figures_of
from triforces_deploy.lammps_plugin.halo import Halo
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


class Session:
    """A loaded potential and what it needs of the pair style that runs it.

    Args:
        potential: the potential.
        file: where it came from, for messages.
        halo: moves rows between ranks.
    """

    def __init__(self, potential: Potential, file: str, halo: Halo) -> None:
        self.potential = potential
        self._file = file
        self._halo = halo
        self._ranks = 1
        self._wide = False
        self._shown: tuple[list[str], bool] | None = None
        # LAMMPS reads the results after compute() has returned.
        self._results: tuple[Tensor, Tensor] | None = None

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
        """Check the run as a whole and return the block that describes it, once; UserError where it would be wrong."""
        startup.check(self.potential.facts, run)
        self.potential.check_elements(torch.tensor(sorted(run.counts), dtype=torch.int64))
        self._ranks = run.ranks
        self._wide = run.shares.rows <= WIDE_ROWS
        together = run.ranks > 1 and self.potential.facts.n_exchanges > 0
        self.potential.memory.share(run.shares.node_ranks, self._halo.everywhere if together else bool)
        block = startup.describe(self.potential, self._file, run, torch.get_num_threads())
        fits, figures = figures_of(self.potential, run.shares, run.ranks)
        # Figures change with every atom that moves; they alone are not worth a second block.
        if (block, fits) == self._shown:
            return ""
        self._shown = block, fits
        return "\n".join([*block, *(f"  {line}" for line in figures)]) + "\n"

    def test(self, step: StepLike, ids: int | None) -> None:
        """Check on all ranks of several that they run the same, and that rows of ghosts travel as they should; UserError.

        Args:
            step: sizes of this rank.
            ids: address of the atoms' ids (rows) int64, None where they have none.
        """
        known = None if ids is None else _view(ids, (step.rows,), "<i8")
        wrong = self_test(self._halo, step.owned, step.rows, self._wide, known, self._halo.total)
        what = zlib.crc32(f"{self.potential.backend} {self.potential.facts}".encode())
        (total,) = self._halo.total([float(what)])
        if wrong:
            raise UserError(
                f"LAMMPS' exchange between ranks is wrong: {wrong}; run on one rank and report this release of LAMMPS"
            )
        if total != what * self._ranks:
            raise UserError(
                f"ranks do not run the same: here {self._file} is opened as {self.potential.backend}, elsewhere differently; "
                "give all ranks the same file and machines of the same kind"
            )

    def compute(self, step: StepLike) -> None:
        """Evaluate one step and leave the addresses of its energies (rows) and pair forces (edges, 3) in it."""
        graph = _graph(step)
        evaluation = self._evaluate(graph) if self._ranks > 1 else self.potential.evaluate(graph)
        energies = evaluation.energies.detach().to(torch.float64).contiguous()
        edge_forces = evaluation.edge_forces.detach().to(torch.float64).contiguous()
        if energies.shape != graph.numbers.shape or edge_forces.shape != graph.edge_vector.shape:
            raise RuntimeError(f"expected energies {tuple(graph.numbers.shape)}, got {tuple(energies.shape)}")
        self._results = energies, edge_forces
        step.energies, step.edge_forces = energies.data_ptr(), edge_forces.data_ptr()

    def _evaluate(self, graph: Graph) -> Evaluation:
        """With other ranks, and as many exchanges as the potential says: one more or less would leave them waiting."""
        self._halo.forwards.clear()
        self._halo.adjoints.clear()
        evaluation = self.potential.evaluate(graph, self._halo)
        made, said = (len(self._halo.forwards), len(self._halo.adjoints)), self.potential.facts.n_exchanges
        if made != (said, said):
            raise RuntimeError(f"{self._file} made {made[0]} exchanges forward and {made[1]} backward, its facts say {said}")
        return evaluation


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
