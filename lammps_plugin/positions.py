"""The route by positions: what crosses between host and device, and when.

At every step positions of owned atoms and ghosts go over, and forces on rows, energies and virial come back, in one copy
each. Lists and elements go over when they have changed. Host memory on either end is pinned where there is a GPU.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from triforces_deploy import exchange
from triforces_deploy.lammps_plugin.buckets import fitting
from triforces_deploy.lammps_plugin.on_device import Layout, evaluate
from triforces_deploy.lammps_plugin.placement import Route
from triforces_deploy.lammps_plugin.recording import CudaGraphs, Recorder, Workspace, Workspaces, again
from triforces_deploy.lammps_plugin.skin import Frame, Pairs, Sizes, numbers_of, padded_numbers, skin
from triforces_deploy.lammps_plugin.views import view
from triforces_deploy.potential import Potential

LAUNCH_BOUND = 400_000
"""Edges up to which evaluations are recorded: about 10,000 atoms. Beyond it padding costs more than launches do."""
MARGIN = 1.02
"""Edges that fit over those there are when a list is new."""


class Positions:
    """Evaluates a potential on frames of one pair style.

    Args:
        potential: on the device that does the work.
        handler: moves features between ranks; None on one rank.
        route: 'graphs' and 'positions' insist on recorded evaluations or on none; None decides by the number of edges.
    """

    def __init__(self, potential: Potential, handler: exchange.Handler | None, route: Route | None) -> None:
        self.potential, self._handler = potential, handler
        self._pinned = potential.device.type == "cuda"
        # What is exchanged goes over the host, and a neighbour cap counts edges: neither can be recorded.
        never = handler is not None or potential.facts.max_neighbours is not None or route == "positions"
        self._most = 0 if never else sys.maxsize if route == "graphs" else LAUNCH_BOUND
        self._record: Recorder = CudaGraphs() if self._pinned else again
        self._spaces = Workspaces(potential.facts.cutoff)
        self._space: Workspace | None = None
        self._pairs: Pairs | None = None
        self._numbers = self._composition = torch.zeros(0)
        self._going, self._coming = self._host(0), self._host(0)

    def step(self, frame: Frame) -> None:
        """Evaluate one frame and leave the addresses of its results in it; they are good until the next call.

        Raises:
            UserError: an element that the model does not know.
        """
        with torch.no_grad(), torch.autograd.set_multithreading_enabled(False):  # communication stays on MPI's thread
            if frame.new_numbers:
                self._take_numbers(frame)
            positions = self._positions(frame)
            if frame.new_list or self._pairs is None:
                self._take_list(frame, positions)
            space = self._current()
            space.positions[: frame.atoms].copy_(positions, non_blocking=True)
            result = self._fetched(self._evaluated(space, frame))
            n_edges = int(result[self._layout(space).edges])
            if self._padded(space) and n_edges > space.sizes.edges:
                space = self._lay_out(n_edges)
                space.positions[: frame.atoms].copy_(positions, non_blocking=True)
                result = self._fetched(self._evaluated(space, frame))
        _hand_over(frame, result, self._layout(space))

    def _positions(self, frame: Frame) -> Tensor:
        """(atoms, 3): where a copy to the device may start from, pinned where there is one."""
        theirs = view(frame.positions, (frame.atoms, 3), "<f8")
        if not self._pinned:
            return theirs
        if self._going.numel() < theirs.numel():
            self._going = self._host(theirs.numel() * 9 // 8)
        return self._going[: theirs.numel()].view(theirs.shape).copy_(theirs)

    def _take_numbers(self, frame: Frame) -> None:
        numbers, composition = numbers_of(frame)
        self.potential.check_elements(numbers)
        self._numbers, self._composition = numbers.to(self.potential.device), composition.to(self.potential.device)
        if self._space is not None and not frame.new_list:
            self._space.skin.numbers.copy_(padded_numbers(self._numbers, self._space.sizes.rows))
            self._space.skin.composition.copy_(self._composition)

    def _take_list(self, frame: Frame, positions: Tensor) -> None:
        if frame.rows > frame.owned:
            self.potential.refuse_ghosts(self._handler)
        facts = self.potential.facts
        self._pairs = Pairs.of(frame, facts.bidirectional and frame.rows > frame.owned, self.potential.device)
        there = positions.to(self.potential.device)
        ends = there.index_select(0, self._pairs.neighbour) - there.index_select(0, self._pairs.centre)
        self._lay_out(int((ends.square().sum(1) < facts.cutoff**2).sum()))

    def _lay_out(self, n_edges: int) -> Workspace:
        """A workspace that holds the list and so many edges."""
        pairs = self._pairs
        assert pairs is not None
        sizes = pairs.exact_sizes()
        if n_edges <= self._most:
            # Two rows more, so that padding edges have rows of their own at either end.
            needed = Sizes(sizes.atoms, sizes.rows + 2, sizes.pairs, int(n_edges * MARGIN) + 1)
            before = self._space.sizes if self._space is not None and self._padded(self._space) else None
            sizes = fitting(before, needed)
            self._space = self._spaces.filled(sizes, skin(pairs, sizes, self._numbers, self._composition))
        else:
            self._spaces.clear()
            self._space = Workspace(sizes, skin(pairs, sizes, self._numbers, self._composition), self.potential.facts.cutoff)
        return self._space

    def _padded(self, space: Workspace) -> bool:
        return space.sizes.edges > 0

    def _current(self) -> Workspace:
        assert self._space is not None, "LAMMPS sends a list first"
        return self._space

    def _layout(self, space: Workspace) -> Layout:
        return Layout(space.sizes.rows, self.potential.has_uncertainty)

    def _evaluated(self, space: Workspace, frame: Frame) -> Tensor:
        virials, padded = bool(frame.atom_virials), self._padded(space)

        def function() -> Tensor:
            return evaluate(self.potential, space.skin, space.positions, self._handler, padded, virials)

        if not padded:
            return function()
        if virials not in space.replays:
            try:
                space.replays[virials] = self._record(function)
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                print(f"triforces-deploy: CUDA graphs are not used: {reason}", file=sys.stderr, flush=True)
                self._record, self._most = again, 0  # and no padding from the next list on
                space.replays[virials] = function
        return space.replays[virials]()

    def _fetched(self, result: Tensor) -> Tensor:
        """The result on the host, when it is there."""
        if not self._pinned:
            self._coming = result
            return result
        if self._coming.numel() < result.numel():
            self._coming = self._host(result.numel() * 9 // 8)
        here = self._coming[: result.numel()].copy_(result, non_blocking=True)
        torch.cuda.current_stream(self.potential.device).synchronize()
        return here

    def _host(self, length: int) -> Tensor:
        return torch.empty(length, dtype=torch.float64, pin_memory=self._pinned)


def _hand_over(frame: Frame, result: Tensor, layout: Layout) -> None:
    """Addresses of the parts of the result."""
    frame.shortest = float(result[layout.shortest].sqrt())
    start, size = result.data_ptr(), result.element_size()
    frame.forces, frame.energies = start, start + size * layout.energies
    frame.virial = start + size * layout.virial
    frame.uncertainty = start + size * layout.uncertainty
    frame.atom_virial = start + size * layout.atom_virials if frame.atom_virials else None
