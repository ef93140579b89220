"""What runs: a model in whichever form works here, behind one call, for ASE, LAMMPS and verification alike."""

from __future__ import annotations

import dataclasses

import torch
from ase.data import atomic_numbers, chemical_symbols
from torch import Tensor

from triforces_deploy import exchange
from triforces_deploy.config import ZBLSwitch
from triforces_deploy.derivatives import Evaluation
from triforces_deploy.errors import UserError
from triforces_deploy.graph import N_NUMBERS, Graph
from triforces_deploy.memory import Memory
from triforces_deploy.neighbour_cap import nearest
from triforces_deploy.payloads.base import FORCES, OUTPUTS, STRESS, UNCERTAINTY, Run
from triforces_deploy.precision import multiplying


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
    precision: str = "float64"
    """Of the network, a key of ``precision.PRECISIONS``; edge vectors and sums over atoms are float64 always."""
    units: str = "metal"
    """LAMMPS unit style."""
    composition: str = "live"
    """'live': element counts of the whole structure at each evaluation. 'frozen': those of ``reference``, always.
    'none': the model has no composition stream."""
    reference: dict[str, float] = dataclasses.field(default_factory=dict)
    """The frozen composition, element → atoms or fractions."""
    lattice: tuple[float, ...] = ()
    """The nine lattice features that are frozen into the weights; empty where the model has no lattice encoding."""
    max_neighbours: int | None = None
    """Only so many nearest neighbours of each atom are seen, ties included; see neighbour_cap.py."""
    zbl_overlay: tuple[ZBLSwitch, ...] = ()
    """Where export laid the short-range repulsion over the model; see nn/zbl.py."""
    readout: str = "sum"
    """'sum': as trained. 'refitted': a sum over atoms that export fitted to a model with another readout."""
    exchange_widths: tuple[int, ...] = ()
    """Numbers in a row of each exchange; empty in files that were made before they were recorded."""
    policies: tuple[str, ...] = ()
    """One line for each decision that export froze; shown by ``tfdeploy info`` and at the start of LAMMPS."""

    def element_numbers(self) -> tuple[int, ...]:
        """Atomic numbers in the order of ``elements``."""
        return tuple(int(atomic_numbers[s]) for s in self.elements)

    def refuse_ranks(self) -> None:
        """UserError where the model cannot share a structure between ranks."""
        if self.max_neighbours is not None:
            raise UserError("a model with a neighbour cap runs on one rank: the neighbours of ghost atoms are not all there")
        if not self.separable:
            raise UserError("a model that is not separable runs on one rank: its energy needs the mean over all atoms")


class Potential:
    """A loaded potential.

    Args:
        facts: what it is.
        run: graph → the tensors that ``outputs`` names: per-atom energies in eV, edge forces in eV/Å, extras.
        backend: what runs it, for messages: a key of payloads/table.py, or 'eager'.
        outputs: what ``run`` returns.
        exchanges: whether ``run`` calls the exchange, so that several ranks can share a structure.
        notes: lines worth showing to whoever starts a run, such as why a faster back end was not used.
        memory: what ``run`` takes and may take, and the device where it takes and returns its tensors.
        kernels: whose code evaluates products, in words for messages; see kernels.py.
    """

    def __init__(
        self,
        facts: Facts,
        run: Run,
        backend: str,
        outputs: tuple[str, ...] = OUTPUTS,
        exchanges: bool = True,
        notes: tuple[str, ...] = (),
        memory: Memory | None = None,
        kernels: str = "own",
    ) -> None:
        self.facts = facts
        self.memory = Memory() if memory is None else memory
        self.backend = backend
        self.notes, self.kernels = notes, kernels
        self.device = self.memory.device
        self._run, self._outputs, self._exchanges = run, outputs, exchanges
        allowed = torch.zeros(N_NUMBERS, dtype=torch.bool)
        allowed[list(self._allowed_numbers())] = True
        self._allowed = allowed
        reference = torch.zeros(1, N_NUMBERS, dtype=torch.float64)
        for symbol, count in facts.reference.items():
            reference[0, atomic_numbers[symbol]] = count
        self._reference = reference.to(self.device)

    def evaluate(self, graph: Graph, handler: exchange.Handler | None = None) -> Evaluation:
        """Per-atom energies and edge forces of a graph, and the energies' uncertainties where the model tells them.

        Args:
            graph: all edges up to the cutoff of ``facts``, also where it caps them; numbers among its elements.
            handler: moves features between ranks; needed where the graph has atoms that are not owned.

        Returns:
            Tensors on the device of the graph, which need not be that of the potential.

        Raises:
            UserError: an element the model does not know, or ghosts without a handler.
        """
        return self._evaluation(self._call(graph, handler))

    def evaluate_unchecked(self, graph: Graph, handler: exchange.Handler | None = None) -> Evaluation:
        """As :meth:`evaluate`, of a graph on the potential's own device whose elements and ghosts are known to be right.

        Nothing here waits for the device, as checks of its numbers would.
        """
        return self._evaluation(self._under_policies(graph, handler))

    def _evaluation(self, results: tuple[Tensor, ...]) -> Evaluation:
        found = dict(zip(self._outputs, results, strict=True))
        extras = (found.get(name) for name in (UNCERTAINTY, FORCES, STRESS))
        return Evaluation(found["energies"], found["edge_forces"], *extras)

    def embeddings(self, graph: Graph, handler: exchange.Handler | None = None) -> dict[str, Tensor]:
        """Features of each stream, (N, width), by the stream's name; arguments and errors as for :meth:`evaluate`."""
        streams = [name for name in self._outputs if name not in (*OUTPUTS, UNCERTAINTY, FORCES, STRESS)]
        if not streams:
            raise UserError(f"this {self.backend} payload has no embeddings; export again with --embeddings, or use eager")
        found = dict(zip(self._outputs, self._call(graph, handler), strict=True))
        return {name: found[name] for name in streams}

    @property
    def has_uncertainty(self) -> bool:
        """Whether :meth:`evaluate` tells the uncertainty of each atom's energy."""
        return UNCERTAINTY in self._outputs

    def _call(self, graph: Graph, handler: exchange.Handler | None) -> tuple[Tensor, ...]:
        self.check_elements(graph.numbers.cpu())
        if handler is not None or not bool(graph.owned.all()):
            self.refuse_ghosts(handler)
        home = graph.numbers.device
        results = self._under_policies(Graph(*(t.to(self.device) for t in graph)), handler)
        return tuple(t.to(home) for t in results)

    def _under_policies(self, graph: Graph, handler: exchange.Handler | None) -> tuple[Tensor, ...]:
        """With the composition and the neighbours that the facts prescribe."""
        if self.facts.composition == "frozen":  # of no consequence where the stream is a table already
            graph = graph._replace(composition=self._reference.expand(graph.composition.shape[0], -1).contiguous())
        if self.facts.max_neighbours is None:
            return self._run_with(graph, handler)
        kept = nearest(graph, self.facts.max_neighbours)
        cut = graph._replace(edge_index=graph.edge_index[:, kept], edge_vector=graph.edge_vector[kept])
        energies, edge_forces, *rest = self._run_with(cut, handler)
        return energies, torch.zeros_like(graph.edge_vector).index_copy(0, kept, edge_forces), *rest

    def _run_with(self, graph: Graph, handler: exchange.Handler | None) -> tuple[Tensor, ...]:
        with multiplying(self.facts.precision, casting=self.backend == "eager"):
            if handler is None:
                return self._run(graph)
            with exchange.using(handler):
                return self._run(graph)

    def refuse_ghosts(self, handler: exchange.Handler | None) -> None:
        """UserError where atoms of other ranks, or their features, cannot be had."""
        self.facts.refuse_ranks()
        if self.facts.n_exchanges and not self._exchanges:
            raise UserError(f"the {self.backend} form of this model runs on one rank only; use aoti, torchscript or eager")
        if self.facts.n_exchanges and handler is None:
            raise UserError("the graph holds ghost atoms of other ranks but no exchange is installed; energies would be wrong")

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
