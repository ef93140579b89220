"""The one way in which edges read atoms and atoms sum over edges; in blocks where a budget is set (nn/blocks.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from triforces_deploy.nn import blocks
from triforces_deploy.nn.scatter import scatter_sum

OfAtoms = Callable[[Tensor], Tensor]


class Messages(NamedTuple):
    """What a function of edges gives, each field a tuple of tensors with a row per edge."""

    edges: tuple[Tensor, ...] = ()
    """Stays on the edges."""
    to_centre: tuple[Tensor, ...] = ()
    """Is summed over the edges of each centre."""
    to_neighbour: tuple[Tensor, ...] = ()
    """Is summed over the edges of each neighbour."""


class Ends(NamedTuple):
    """What an edge reads of the atoms at its ends."""

    atoms: Tensor
    """(N, …)."""
    at_centre: OfAtoms | None = None
    """Applied to ``atoms`` before the centre's rows are looked up; None where the edge does not read its centre."""
    at_neighbour: OfAtoms | None = None
    """The same for the neighbour."""
    apart: bool = False
    """Give the function the atoms' rows and, after them, which of these each edge reads (E,), for it to look up itself."""

    def sides(self) -> list[tuple[int, OfAtoms]]:
        """What is read: 0 at the centre, 1 at the neighbour."""
        return [(k, f) for k, f in enumerate((self.at_centre, self.at_neighbour)) if f is not None]


def over_edges(
    function: Callable[..., Messages],
    edge_index: Tensor,
    n_atoms: int,
    edges: Sequence[Tensor] = (),
    ends: Sequence[Ends] = (),
    widest: int = 64,
) -> Messages:
    """Evaluate a function on every edge and sum what it sends to the atoms.

    Args:
        function: called with a row per edge of each of ``edges``, then of what each of ``ends`` reads, the centre's before
            the neighbour's. Row by row, so that any part of the edges gives that part of the result. It may use parameters,
            not other tensors that need a derivative.
        edge_index: (2, E) int64; row 0 is the neighbour, row 1 the centre.
        n_atoms: N.
        edges: tensors (E, …).
        ends: what is read of the atoms.
        widest: numbers per edge of the widest tensor inside ``function``.

    Returns:
        ``edges`` with a row per edge, ``to_centre`` and ``to_neighbour`` with a row per atom.
    """
    neighbour, centre = edge_index.unbind(0)
    budget = blocks.active()
    if budget is not None and budget.whole:
        return _twice(function, edge_index, n_atoms, edges, ends)
    if budget is None:
        m = function(*edges, *_read(ends, [end.atoms for end in ends for _ in end.sides()], centre, neighbour))
        sums = [tuple(scatter_sum(t, index, n_atoms) for t in part) for part, index in ((m[1], centre), (m[2], neighbour))]
        return Messages(m.edges, *sums)
    tensors = (*edges, *(end.atoms for end in ends for _ in end.sides()))

    def of_block(inverse: tuple[Tensor, ...], inputs: Sequence[Tensor]) -> Messages:
        return function(*inputs[: len(edges)], *_read(ends, inputs[len(edges) :], *inverse))

    kinds = _kinds(of_block, tensors, centre)
    outputs = (*[None] * kinds[0], *[(0, n_atoms)] * kinds[1], *[(1, n_atoms)] * kinds[2])
    width = widest * max(t.element_size() for t in tensors)
    sides = [side for end in ends for side, _ in end.sides()]
    rows = blocks.Rows(centre.shape[0], (centre, neighbour), (*[None] * len(edges), *sides), outputs, width)
    flat = blocks.evaluate(lambda inverse, inputs: _flat(of_block(inverse, inputs)), rows, tensors, budget)
    first, second = kinds[0], kinds[0] + kinds[1]
    return Messages(flat[:first], flat[first:second], flat[second:])


def over_atoms(function: Callable[..., Tensor], *tensors: Tensor, widest: int = 64) -> Tensor:
    """Evaluate a function on every atom, (N, …) tensors → (N, …); row by row, like that of :func:`over_edges`."""
    budget = blocks.active()
    if budget is None:
        return function(*tensors)
    if budget.whole:
        (result,) = blocks.evaluate_twice(lambda *t: (function(*t),), *tensors)
        return result
    width = widest * max(t.element_size() for t in tensors)
    rows = blocks.Rows(tensors[0].shape[0], (), (None,) * len(tensors), (None,), width)
    (result,) = blocks.evaluate(lambda _, inputs: (function(*inputs),), rows, tensors, budget)
    return result


def _twice(
    function: Callable[..., Messages], edge_index: Tensor, n_atoms: int, edges: Sequence[Tensor], ends: Sequence[Ends]
) -> Messages:
    """:func:`over_edges` of all edges at once, of which nothing is kept for the derivative."""
    counts: list[int] = []

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
        own = [end._replace(atoms=atoms) for end, atoms in zip(ends, tensors[len(edges) :], strict=True)]
        with blocks.without_budget():
            m = over_edges(function, edge_index, n_atoms, tensors[: len(edges)], own)
        counts[:] = [len(m.edges), len(m.edges) + len(m.to_centre)]
        return _flat(m)

    result = blocks.evaluate_twice(flat, *edges, *(end.atoms for end in ends))
    return Messages(result[: counts[0]], result[counts[0] : counts[1]], result[counts[1] :])


def _read(ends: Sequence[Ends], atoms: Sequence[Tensor], centre: Tensor, neighbour: Tensor) -> list[Tensor]:
    """What the function is given of the atoms that are read, those for each side of each end."""
    found = []
    sides = [(end.apart, *side) for end in ends for side in end.sides()]
    for (apart, side, of_atoms), rows in zip(sides, atoms, strict=True):
        index = (centre, neighbour)[side]
        found += [of_atoms(rows), index] if apart else [of_atoms(rows).index_select(0, index)]
    return found


def _flat(messages: Messages) -> tuple[Tensor, ...]:
    return (*messages.edges, *messages.to_centre, *messages.to_neighbour)


def _kinds(of_block: Callable[..., Messages], tensors: Sequence[Tensor], centre: Tensor) -> tuple[int, int, int]:
    """How many tensors of each kind the function gives, asked of no edges at all."""
    nothing = centre[:0]
    empty = of_block((nothing, nothing), [t.detach()[:0] for t in tensors])
    return len(empty.edges), len(empty.to_centre), len(empty.to_neighbour)
