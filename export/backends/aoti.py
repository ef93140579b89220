"""AOTInductor from the captured graph, for a portable instruction set."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from triforces_deploy.payloads.aoti import target
from triforces_deploy.payloads.base import UnusableError

from .base import Captured, Lowered
from .program import program

PORTABLE_X86 = {"cpp.march": "x86-64-v3", "cpp.simdlen": 256}
"""Inductor's default is the compiling machine's own instruction set, which kills the process on an older CPU."""


def lower(captured: Captured) -> Lowered:
    """Machine code in a package; UnusableError without a C++ compiler."""
    if shutil.which("g++") is None:
        raise UnusableError("no C++ compiler (g++) on the path; install one, e.g. `apt install g++`")
    options: dict[str, Any] = dict(PORTABLE_X86) if target().endswith("x86_64-v3") else {}
    threads = torch.get_num_threads()
    # With several threads Inductor would write parallel loops of atomic additions, which are slower here and, worse,
    # not repeatable.
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="tfdeploy-") as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Inductor's remarks on its own internals
            package = Path(folder) / "model.pt2"
            torch._inductor.aoti_compile_and_package(program(captured), package_path=str(package), inductor_configs=options)
            return Lowered(package.read_bytes(), target())
    finally:
        torch.set_num_threads(threads)
