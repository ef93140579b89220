"""What runs: a model in whichever form works here, behind one call, for ASE, LAMMPS and verification alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from ase.data import atomic_numbers, chemical_symbols
from torch import Tensor

from triforces_deploy import exchange
from triforces_deploy.derivatives import Evaluation
from triforces_deploy.errors import UserError
from triforces_deploy.graph import N_NUMBERS, Graph

DTYPES = {"float64": torch.float64, "float32": torch.float32}
"""Precisions a network can have, by the name that files and users give them."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a host must know of a potential before it runs it; stored in every artifact."""

    elements: tuple[str, ...]
    """Chemical symbols in the order in which LAMMPS numbers them."""
    cutoff: float
    """Å."""
    n_exchanges: int
    """Calls of the exchange in the forward pass, and again as many in the backward pass."""
    receptive_field: float
    """Å."""
    bidirectional: bool
    """Whether a rank must also list, mirrored, the edges whose centre is a ghost; see backbones/base.py."""
    smooth: bool = True
    conservative: bool = True
    separable: bool = True
    dtype: str = "float64"
    """Precision of the network; edge vectors and sums over atoms are float64 always."""
    units: str = "metal"
    """LAMMPS unit style."""
    composition: str = "live"
    """'live': element counts of the whole structure at each evaluation. 'frozen': those of ``reference``, always.
    'none': the model has no composition stream."""
    reference: dict[str, int] = dataclasses.field(default_factory=dict)
    """The frozen composition, element → atoms."""

    def element_numbers(self) -> tuple[int, ...]:
        """Atomic numbers in the order of ``elements``."""
        return tuple(int(atomic_numbers[s]) for s in self.elements)


class Potential:
    """A loaded potential.

    Args:
        facts: what it is.
        run: graph → per-atom energies and edge forces, in eV and eV/Å.
        backend: what runs it, for messages: 'aoti', 'torchscript' or 'eager'.
        notes: lines worth showing to whoever starts a run, such as why a faster back end was not used.
    """

    def __init__(self, facts: Facts, run: Callable[[Graph], Evaluation], backend: str, notes: tuple[str, ...] = ()) -> None:
        self.facts = facts
        self.backend = backend
        self.notes = notes
        self._run = run
        allowed = torch.zeros(N_NUMBERS, dtype=torch.bool)
        allowed[list(self._allowed_numbers())] = True
        self._allowed = allowed
        self._reference = torch.zeros(1, N_NUMBERS, dtype=torch.float64)
        for symbol, count in facts.reference.items():
            self._reference[0, atomic_numbers[symbol]] = count

    def evaluate(self, graph: Graph, handler: exchange.Handler | None = None) -> Evaluation:
        """Per-atom energies and edge forces of a graph.

        Args:
            graph: edges up to the cutoff of ``facts``; numbers among its elements.
            handler: moves features between ranks; needed where the graph has atoms that are not owned.

        Raises:
            UserError: an element the model does not know, or ghosts without a handler.
        """
        self.check_elements(graph.numbers)
        if self.facts.composition == "frozen":
            graph = graph._replace(composition=self._reference.expand(graph.composition.shape[0], -1).contiguous())
        if handler is not None:
            with exchange.using(handler):
                return self._run(graph)
        if self.facts.n_exchanges and not bool(graph.owned.all()):
            raise UserError("the graph holds ghost atoms of other ranks but no exchange is installed; energies would be wrong")
        return self._run(graph)

    def check_elements(self, numbers: Tensor) -> None:
        """Refuse atoms of an element that training (or the frozen composition) never saw; UserError."""
        if bool(self._allowed[numbers].all()):
            return
        unknown = sorted({chemical_symbols[z] for z in numbers[~self._allowed[numbers]].tolist()})
        known = ", ".join(chemical_symbols[z] for z in sorted(self._allowed_numbers()))
        why = "the frozen composition holds" if self.facts.composition == "frozen" else "the model was trained for"
        raise UserError(f"element {', '.join(unknown)}: {why} {known} only")

    def _allowed_numbers(self) -> set[int]:
        if self.facts.composition == "frozen":
            return {int(atomic_numbers[s]) for s in self.facts.reference}
        return set(self.facts.element_numbers())
