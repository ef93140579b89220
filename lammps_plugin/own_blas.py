"""Keeps LAMMPS' linear algebra out of torch.

liblammps carries a plain textbook ``dgemm_`` and puts it into the global scope of the process, where every library loaded
later finds it before its own: torch's float64 products then run about four times slower, without a word. Loading torch
with its own symbols first cures it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from importlib.util import find_spec
from pathlib import Path


def load_torch() -> None:
    """Load torch's library so that it uses its own BLAS; must come before ``import torch``, does nothing after it."""
    if "torch" in sys.modules or sys.platform != "linux":
        return
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return  # the import that follows says so
    library = Path(spec.origin).parent / "lib" / "libtorch_cpu.so"
    ctypes.CDLL(str(library), mode=os.RTLD_LOCAL | os.RTLD_NOW | os.RTLD_DEEPBIND)
