"""Matrix products in float32 by oneDNN instead of the BLAS that torch was built with, where Inductor compiles for a CPU.

At the sizes of these networks oneDNN takes 10 to 20 % less time than MKL on AMD's processors. Matrices stay as they are in
the file: packed ones would be as large again, and for one kind of CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

A = torch.ops.aten
LEAST = 128
"""Rows and columns of the second matrix: for less, what oneDNN does before and after costs what it saves."""


@contextmanager
def by_onednn() -> Iterator[None]:
    """Inside the ``with`` block Inductor turns products with a matrix of known size into calls of oneDNN."""
    from torch._inductor import lowering

    usual: dict[Any, Any] = {operator: lowering.lowerings[operator] for operator in (A.mm.default, A.addmm.default)}

    def mm(a: Any, b: Any, **options: Any) -> Any:
        return _product(a, b, None) if _suits(b) else usual[A.mm.default](a, b, **options)

    def addmm(bias: Any, a: Any, b: Any, **options: Any) -> Any:
        if not _suits(b) or options:
            return usual[A.addmm.default](bias, a, b, **options)
        by_row = len(bias.get_size()) == 1
        return _product(a, b, bias) if by_row else lowering.add(_product(a, b, None), bias)

    lowering.lowerings.update({A.mm.default: mm, A.addmm.default: addmm})
    try:
        yield
    finally:
        lowering.lowerings.update(usual)


def _suits(matrix: Any) -> bool:
    from torch._inductor.virtualized import V

    large = all(V.graph.sizevars.statically_known_geq(size, LEAST) for size in matrix.get_size())
    return large and matrix.get_dtype() == torch.float32


def _product(a: Any, b: Any, bias: Any) -> Any:
    from torch._inductor import ir, lowering, mkldnn_ir

    kernel = ir.ExternKernel
    x = kernel.require_contiguous(kernel.realize_input(a))
    weight = kernel.realize_input(lowering.permute(b, [1, 0]))
    rows, columns = weight.get_size()
    if tuple(weight.get_stride()) not in ((columns, 1), (1, rows)):
        # Of a piece of a matrix oneDNN has only its reference code, a thousand times slower.
        weight = kernel.require_contiguous(weight)
    size = [x.get_size()[0], rows]
    layout = ir.FixedLayout(torch.device("cpu"), x.get_dtype(), size, ir.FlexibleLayout.contiguous_strides(size))
    inputs: list[Any] = [x, weight]
    options: list[Any] = ["none", [-1], ""]  # no function after it
    if bias is None:
        options = [None, *options]
    else:
        inputs.append(kernel.require_contiguous(kernel.realize_input(bias)))
    call = mkldnn_ir.LinearUnary(layout=layout, inputs=inputs, constant_args=options)
    return ir.TensorBox.create(mkldnn_ir._create_output_node(call))
