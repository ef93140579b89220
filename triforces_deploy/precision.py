"""The named precisions of a network. Edge vectors and sums over atoms are float64 in all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


@dataclasses.dataclass(frozen=True)
class Precision:
    """What one name means."""

    dtype: torch.dtype
    """Type of weights and features."""
    parity: float
    """Largest deviation allowed between two back ends, relative to the largest value."""
    parity_at_most: float = 0.0
    """The same with the rounding of eager itself on top, at most: sums in another order round otherwise, and where terms nearly
    cancel both forms are off, each in its own way."""
    rounding: float = 0.0
    """Largest deviation from the same network in float64 that is still a rounding, relative to the largest force."""
    products: Literal["full", "tf32", "bf16"] = "full"
    """What matrix products round their factors to."""


PRECISIONS = {
    "float64": Precision(torch.float64, parity=1e-10),
    "float32": Precision(torch.float32, parity=1e-5, parity_at_most=5e-5, rounding=1e-3),
    # Two back ends differ by a last digit of float32 here and there; where that turns the rounding of a factor, the factor
    # differs by one unit of 11 or 8 bits; and a compiler may keep the digits of a product that eager rounds away.
    "tf32": Precision(torch.float32, parity=2e-3, rounding=1e-2, products="tf32"),
    "bf16": Precision(torch.float32, parity=5e-2, rounding=1e-1, products="bf16"),
}


def available(name: str) -> str | None:
    """Why this machine gains nothing from a precision, in one line; None where it does."""
    products = PRECISIONS[name].products
    gpu = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    if products == "full" or gpu:
        return None
    if products == "tf32":
        return "tf32 matrix products need a CUDA GPU of compute capability 8 or higher; use float32"
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return None
    return "bf16 matrix products need a CPU with AVX512-BF16 or AMX, or a CUDA GPU of compute capability 8; use float32"


@contextmanager
def multiplying(name: str, casting: bool) -> Iterator[None]:
    """Let matrix products inside the block round as a precision says; what was set before is restored.

    TF32 is a switch of torch for the whole process. For bf16 torch has one too, but its CPU kernels heed it only where
    there is AMX; so the factors are cast one product at a time, which capture then records.

    Args:
        name: a key of ``PRECISIONS``.
        casting: cast to bf16; compiled forms have the casts in their graph.
    """
    products = PRECISIONS[name].products
    if products == "tf32":
        before = torch.backends.cuda.matmul.fp32_precision
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        try:
            yield
        finally:
            torch.backends.cuda.matmul.fp32_precision = before
    elif products == "bf16" and casting:
        with _Casting():
            yield
    else:
        yield


class _Casting(TorchDispatchMode):
    """Factors of matrix products to bf16, the result back to float32. It sits below autograd and sees both passes."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        if func in (aten.mm.default, aten.bmm.default) and args[0].dtype == torch.float32:
            return _multiply(func, *args)
        if func is aten.addmm.default and args[0].dtype == torch.float32 and not kwargs:
            return _multiply(aten.mm.default, *args[1:]) + args[0]  # the bias keeps its digits
        if func.name() == "mkldnn::_linear_pointwise":  # of nn/linear.py
            x, weight, bias = args[:3]
            product = _multiply(aten.mm.default, x, weight.t())
            return product if bias is None else product + bias
        return func(*args, **(kwargs or {}))


def _multiply(product: Any, a: Tensor, b: Tensor) -> Tensor:
    rounded: Tensor = product(a.to(torch.bfloat16), b.to(torch.bfloat16))
    return rounded.to(torch.float32)
