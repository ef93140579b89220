"""Evaluation in blocks of rows, so that memory follows what a layer keeps and not everything it computes.

A function of rows (edges, or atoms) is evaluated block by block. What its derivative needs is kept where there is room for
all of it. Where there is not, only products with large matrices are kept (nn/linear.py), as long as the budget lasts, and
the rest, which costs little, is computed again in the backward pass; without any budget that is up to half as much
arithmetic again. Blocks are small enough to stay in the processor's cache.

Without a budget, which is how models are trained and captured, nothing here is used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from triforces_deploy.nn import scratch
from triforces_deploy.nn.scatter import accumulate

BLOCK_BYTES = 4 * 2**20
"""Of the widest tensor of a block: a few of them fit into the cache of one core."""
LEAST_ROWS = 64


@dataclasses.dataclass
class Budget:
    """Memory that one evaluation may spend on what would otherwise be computed twice."""

    bytes: int
    block_bytes: int = 0
    """Of the widest tensor of a block."""
    spent: int = 0
    seen: set[int] = dataclasses.field(default_factory=set)
    """Addresses of what has been counted: weights and inputs are shared by all blocks."""
    everything: bool = True
    """Keep all that derivatives need; else results of products with large matrices alone."""
    whole: bool = False
    """All rows are one block, of which nothing is kept; no number of rows is looked at, so that it can be captured."""

    def rest(self) -> int:
        return self.bytes - self.spent


_budgets: list[Budget | None] = [None]


@contextmanager
def using(limit: int, block_bytes: int | None = None, everything: bool = True) -> Iterator[None]:
    """Evaluate in blocks inside the ``with`` block, keeping at most ``limit`` bytes for the backward pass.

    Args:
        limit: of what is kept.
        block_bytes: of the widest tensor of a block.
        everything: keep all that derivatives need, block by block; else only results of products with large matrices.
    """
    _budgets.append(Budget(limit, BLOCK_BYTES if block_bytes is None else block_bytes, everything=everything))
    try:
        yield
    finally:
        _budgets.pop()


@contextmanager
def keeping_nothing() -> Iterator[None]:
    """Evaluate whole inside the ``with`` block, and compute again in the backward pass whatever happened on the rows."""
    _budgets.append(Budget(0, whole=True))
    try:
        yield
    finally:
        _budgets.pop()


@contextmanager
def without_budget() -> Iterator[None]:
    """Evaluate whole inside the ``with`` block and keep everything, as if there had been no other."""
    _budgets.append(None)
    try:
        yield
    finally:
        _budgets.pop()


def active() -> Budget | None:
    """The budget of the innermost ``using``; None outside of any."""
    return _budgets[-1]


def in_blocks() -> bool:
    """Whether an evaluation in blocks is going on."""
    budget = active()
    return budget is not None and not budget.whole


@dataclasses.dataclass
class _Products:
    """What a function's products with large matrices gave, in the order in which it computes them."""

    budget: Budget
    results: list[Tensor | None] = dataclasses.field(default_factory=list)
    """None for what there was no room to keep."""
    again: Iterator[Tensor | None] | None = None
    """Where in the results a second evaluation is."""

    def of(self, compute: Callable[[], Tensor]) -> Tensor:
        if self.again is not None:
            found = next(self.again)
            return compute() if found is None else found
        result = compute()
        fits = self.budget.rest() >= result.nbytes
        self.budget.spent += result.nbytes if fits else 0
        self.results.append(result if fits else None)
        return result


_products: list[_Products | None] = [None]


@contextmanager
def _with_products(products: _Products | None) -> Iterator[None]:
    _products.append(products)
    try:
        yield
    finally:
        _products.pop()


def kept(compute: Callable[[], Tensor]) -> Tensor:
    """A result that costs so much that it is kept, where there is room, when its block is to be evaluated again."""
    products = _products[-1]
    return compute() if products is None else products.of(compute)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Where the rows of inputs come from and where those of outputs go."""

    n_rows: int
    indices: tuple[Tensor, ...]
    """Each (n_rows,): ways to look up an input by row, or to sum an output over rows."""
    inputs: tuple[int | None, ...]
    """For each input, which of ``indices`` looks it up; None where it has a row of its own for each."""
    outputs: tuple[tuple[int, int] | None, ...]
    """For each output, which of ``indices`` it is summed by and the length of that sum; None where it keeps its rows."""
    widest: int
    """Bytes per row of the widest intermediate tensor."""

    def blocks(self, block_bytes: int) -> list[slice]:
        size = max(LEAST_ROWS, block_bytes // max(self.widest, 1))
        return [slice(k, min(k + size, self.n_rows)) for k in range(0, max(self.n_rows, 1), size)]


@dataclasses.dataclass(frozen=True)
class Places:
    """Which rows of looked-up tensors one block reads, each once: rows = unique[inverse]."""

    unique: tuple[Tensor, ...]
    inverse: tuple[Tensor, ...]

    @classmethod
    def of(cls, rows: Rows, block: slice) -> Places:
        pairs = [torch.unique(index[block], return_inverse=True) for index in rows.indices]
        return cls(tuple(u for u, _ in pairs), tuple(i for _, i in pairs))


Function = Callable[[tuple[Tensor, ...], Sequence[Tensor]], tuple[Tensor, ...]]
"""``inverse`` of the block's places, and the block's inputs (looked-up ones with a row per distinct atom) → outputs by row."""


def evaluate(function: Function, rows: Rows, tensors: Sequence[Tensor], budget: Budget) -> tuple[Tensor, ...]:
    """``function`` on every row, block by block, differentiable once in ``tensors``.

    Args:
        function: see :data:`Function`.
        rows: where rows come from and go to.
        tensors: the inputs, complete.
        budget: what may be kept.
    """
    return tuple(_Blocked.apply(function, rows, budget, *tensors))


def evaluate_twice(function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
    """``function(*tensors)``, evaluated again for its derivative instead of remembered.

    Differentiable in the tensors alone, not in parameters; twice only as often as autograd is told to (``create_graph``).
    """
    return tuple(_Twice.apply(function, *tensors))


class _Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.function = function
        ctx.save_for_backward(*tensors)
        return function(*tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        wanted = ctx.needs_input_grad[1:]
        again = torch.is_grad_enabled()  # the derivative will itself be differentiated
        with torch.enable_grad():
            # Views are other tensors, so that no derivative goes through what one input owes to another.
            own = [
                t.view_as(t) if again and needed else t.detach().requires_grad_(needed)
                for t, needed in zip(ctx.saved_tensors, wanted, strict=True)
            ]
            values = ctx.function(*own)
        leaves = [t for t, needed in zip(own, wanted, strict=True) if needed]
        found = iter(_vector_jacobian(values, leaves, gradients, again))
        return (None, *(next(found) if needed else None for needed in wanted))


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Function, rows: Rows, budget: Budget, *tensors: Tensor) -> tuple[Tensor, ...]:
        wanted = ctx.needs_input_grad[3:]
        ctx.function, ctx.rows, ctx.block_bytes, ctx.kept, ctx.products = function, rows, budget.block_bytes, {}, {}
        totals: list[Tensor] = []
        everything = budget.everything
        for block in rows.blocks(budget.block_bytes):
            places = Places.of(rows, block)
            inputs = _look_up(rows, tensors, places, block)
            if any(wanted) and budget.rest() > 0 and everything:
                with _counting(budget):
                    leaves, recorded = _recorded(function, places, inputs, wanted)
                ctx.kept[block.start] = places, leaves, recorded
                values = [v.detach() for v in recorded]
            else:
                products = _Products(budget) if any(wanted) and budget.rest() > 0 else None
                with _with_products(products):
                    values = list(function(places.inverse, inputs))
                ctx.products[block.start] = products
                # A function without such products: what room there is goes to all that it computes.
                everything = products is not None and not products.results
            totals = totals or _totals(rows.n_rows, values, [to and to[1] for to in rows.outputs])
            for total, value, to in zip(totals, values, rows.outputs, strict=True):
                _put(total, value, block, to and rows.indices[to[0]][block])
            _release(rows.inputs, tensors, block)
        ctx.save_for_backward(*_put_away(rows, tensors))
        return tuple(totals)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        wanted, rows, tensors = ctx.needs_input_grad[3:], ctx.rows, ctx.saved_tensors
        chosen = [k for k, needed in enumerate(wanted) if needed]
        lengths = [None if rows.inputs[k] is None else tensors[k].shape[0] for k in chosen]
        totals = _totals(rows.n_rows, [tensors[k][:0] for k in chosen], lengths)
        for block in rows.blocks(ctx.block_bytes):
            if block.start in ctx.kept:
                places, leaves, values = ctx.kept.pop(block.start)
            else:
                places, products = Places.of(rows, block), ctx.products.pop(block.start)
                if products is not None:
                    products.again = iter(products.results)
                with _with_products(products):
                    leaves, values = _recorded(ctx.function, places, _look_up(rows, tensors, places, block), wanted)
            found = _vector_jacobian(values, leaves, _gradients(rows, gradients, block))
            for total, value, k in zip(totals, found, chosen, strict=True):
                at = rows.inputs[k]
                _put(total, value, block, None if at is None else places.unique[at])
            _release(rows.inputs, tensors, block)
            _release(rows.outputs, gradients, block)
        iterator = iter(totals)
        return (None, None, None, *(next(iterator) if needed else None for needed in wanted))


def _look_up(rows: Rows, tensors: Sequence[Tensor], places: Places, block: slice) -> list[Tensor]:
    return [
        t[block] if at is None else t.index_select(0, places.unique[at]) for t, at in zip(tensors, rows.inputs, strict=True)
    ]


def _recorded(
    function: Function, places: Places, inputs: list[Tensor], wanted: Sequence[bool]
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """Evaluate with a graph of its own; the inputs whose derivative is wanted, and the outputs."""
    with torch.enable_grad():
        own = [t.detach().requires_grad_(needed) for t, needed in zip(inputs, wanted, strict=True)]
        return [t for t in own if t.requires_grad], function(places.inverse, own)


def _vector_jacobian(
    values: Sequence[Tensor], leaves: list[Tensor], gradients: Sequence[Tensor], create_graph: bool = False
) -> Sequence[Tensor]:
    pairs = [(v, g) for v, g in zip(values, gradients, strict=True) if v.requires_grad]
    if not pairs:
        return [torch.zeros_like(leaf) for leaf in leaves]
    outputs, given = zip(*pairs, strict=True)
    return torch.autograd.grad(outputs, leaves, given, create_graph=create_graph, materialize_grads=True)


def _gradients(rows: Rows, gradients: Sequence[Tensor], block: slice) -> list[Tensor]:
    """Of the outputs, a row for each row of the block."""
    return [
        g[block] if to is None else g.index_select(0, rows.indices[to[0]][block])
        for g, to in zip(gradients, rows.outputs, strict=True)
    ]


def _totals(n_rows: int, values: Sequence[Tensor], lengths: Sequence[int | None]) -> list[Tensor]:
    """Where results are collected: rows of their own, or sums of the given length."""
    return [
        scratch.empty_rows((n_rows, *v.shape[1:]), v) if n is None else v.new_zeros(n, *v.shape[1:])
        for v, n in zip(values, lengths, strict=True)
    ]


def _put(total: Tensor, value: Tensor, block: slice, index: Tensor | None) -> None:
    if index is None:
        total[block] = value
        scratch.release(total, block)
    else:
        accumulate(total, index, value)


def _put_away(rows: Rows, tensors: Sequence[Tensor]) -> list[Tensor]:
    """What is read in order in the backward pass need not wait for it in memory."""
    return [scratch.put_away(t) if at is None else t for t, at in zip(tensors, rows.inputs, strict=True)]


def _release(places: Sequence[object | None], tensors: Sequence[Tensor], block: slice) -> None:
    """Of tensors that are read in order; those that are looked up or summed may be wanted at any row."""
    for t, at in zip(tensors, places, strict=True):
        if at is None:
            scratch.release(t, block)


@contextmanager
def _counting(budget: Budget) -> Iterator[None]:
    """Charge to the budget what autograd keeps, every storage once."""

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in budget.seen:
            budget.seen.add(storage.data_ptr())
            budget.spent += storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        yield
