"""Evaluations that a GPU repeats as one recorded graph: a small system is done before the host has launched its kernels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

from triforces_deploy.lammps_plugin.skin import PADDING_ATOMS, Sizes, Skin

WARM_UP = 3
"""Evaluations before the recording, in which libraries and compiled forms make what they keep."""
HELD = 4
"""Sets of sizes whose tensors and recordings are kept."""

Replay = Callable[[], Tensor]
Recorder = Callable[[Callable[[], Tensor]], Replay]
"""A function of tensors whose addresses never change → what repeats it. RuntimeError where it cannot be recorded."""


def again(function: Callable[[], Tensor]) -> Replay:
    """The recorder of a device that needs none: call the function."""
    return function


class CudaGraphs:
    """Records CUDA graphs, which share their memory: the result of one is copied before another runs."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], Tensor]) -> Replay:
        """Evaluate ``WARM_UP`` times beside the current stream, then record."""
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UP):
                function()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = function()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


class Workspace:
    """Tensors of one set of sizes, filled again for each list, and the recordings that read them."""

    def __init__(self, sizes: Sizes, skin: Skin, cutoff: float) -> None:
        self.sizes, self.skin = sizes, skin
        self.positions = skin.cell.new_zeros(sizes.atoms + PADDING_ATOMS, 3)
        self.positions[-1, 0] = 2.0 * cutoff
        self.replays: dict[bool, Replay] = {}
        """With and without virials of the atoms."""

    def fill(self, skin: Skin) -> None:
        for mine, new in zip(self.skin, skin, strict=True):
            mine.copy_(new)


class Workspaces:
    """The last ``HELD`` of them."""

    def __init__(self, cutoff: float) -> None:
        self._cutoff = cutoff
        self._held: OrderedDict[Sizes, Workspace] = OrderedDict()

    def filled(self, sizes: Sizes, skin: Skin) -> Workspace:
        """The workspace of the sizes, new where there is none, holding the list."""
        found = self._held.get(sizes)
        if found is None:
            found = self._held[sizes] = Workspace(sizes, skin, self._cutoff)
            if len(self._held) > HELD:
                self._held.popitem(last=False)
        else:
            found.fill(skin)
            self._held.move_to_end(sizes)
        return found

    def clear(self) -> None:
        self._held.clear()
