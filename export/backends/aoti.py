"""AOTInductor from the captured graph, for a portable instruction set unless asked otherwise."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import tempfile
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.export.passes import move_to_device_pass

from triforces_deploy.payloads.aoti import FLAGS, cpu_flags, target
from triforces_deploy.payloads.base import UnusableError

from .base import Captured, Lowered
from .products import by_onednn
from .program import program

COMPILER = "g++"
PORTABLE_X86 = {"cpp.march": "x86-64-v3", "cpp.simdlen": 256}
"""Inductor's default is the compiling machine's own instruction set, which kills the process on an older CPU."""


def lower(captured: Captured) -> Lowered:
    """Machine code in a package; UnusableError without a C++ compiler."""
    if shutil.which(COMPILER) is None:
        raise UnusableError(f"no C++ compiler ({COMPILER}) on the path; install one, e.g. `apt install {COMPILER}`")
    made_for = target(captured.native, captured.device)
    options: dict[str, Any] = dict(PORTABLE_X86) if made_for.endswith("-v3") else {}
    # Reordered for its peak of memory, the graph of a lean form gives wrong forces (torch 2.13): a buffer is written again
    # before its last reader.
    options |= {"reorder_for_peak_memory": False} if captured.lean else {}
    details = {FLAGS: native_flags()} if made_for.endswith("-native") else {}
    threads = torch.get_num_threads()
    # With several threads Inductor would write parallel loops of atomic additions, which are slower here and, worse,
    # not repeatable.
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="tfdeploy-") as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Inductor's remarks on its own internals
            package = Path(folder) / "model.pt2"
            exported = program(captured)
            if captured.device != "cpu":
                exported = move_to_device_pass(exported, captured.device)
            with by_onednn() if captured.device == "cpu" else nullcontext():
                torch._inductor.aoti_compile_and_package(exported, package_path=str(package), inductor_configs=options)
            return Lowered(package.read_bytes(), made_for, details)
    finally:
        torch.set_num_threads(threads)


def native_flags() -> list[str]:
    """Features of this CPU, as Linux names them, that the compiler uses when it compiles for this very CPU.

    Linux also lists what concerns the kernel alone, and asking for those would refuse equal CPUs. The compiler says what it
    takes in its predefined macros, spelled alike but for case and underscores; where it does not, all features count.
    """
    here = cpu_flags()
    if platform.machine() != "x86_64":
        return sorted(here)
    command = [COMPILER, "-march=native", "-dM", "-E", "-x", "c++", "/dev/null"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    used = {_plain(name) for name in re.findall(r"#define __(\w+?)__ 1$", said, re.MULTILINE)}
    aliases = {"bmi1": "bmi", "pni": "sse3", "abm": "lzcnt", "3dnowprefetch": "prfchw", "sha_ni": "sha"}
    return sorted(flag for flag in here if _plain(aliases.get(flag, flag)) in used) or sorted(here)


def _plain(name: str) -> str:
    return name.lower().replace("_", "")
