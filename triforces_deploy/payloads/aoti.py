"""AOTInductor: machine code for one torch and one kind of CPU (or GPU), the fastest form."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from triforces_deploy.graph import Graph
from triforces_deploy.payloads.base import Backend, PayloadInfo, Run, UnusableError, check_torch, flat_inputs

X86_64_V3 = frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"})
"""What Linux calls the features of the portable instruction set that we compile for (``abm`` is lzcnt)."""


def _open(info: PayloadInfo, content: bytes) -> Run:
    check_torch(info)
    if info.target != target():
        raise UnusableError(f"compiled for {info.target}, this machine is {target()}")
    # Unpacked below a folder of ours that goes as soon as the code is mapped: the loader cleans up only when Python ends
    # properly, which it does not inside LAMMPS, and campaigns would fill the disk. The loader underneath
    # torch._inductor's own is used because importing that costs seconds.
    with tempfile.TemporaryDirectory(prefix="tfdeploy-") as folder, _temporary_directory(folder):
        package = Path(folder) / "model.pt2"
        package.write_bytes(content)
        try:
            compiled = torch._C._aoti.AOTIModelPackageLoader(str(package), "model", True, 1, -1)
        except RuntimeError as error:
            raise UnusableError(str(error).splitlines()[0]) from error

    def run(graph: Graph) -> tuple[Tensor, ...]:
        return tuple(compiled.run(list(flat_inputs(graph))))

    return run


@contextmanager
def _temporary_directory(folder: str) -> Iterator[None]:
    """Point the C++ side's idea of the temporary directory at ``folder``."""
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before


def target() -> str:
    """The kind of machine this is, in the words of ``PayloadInfo.target``."""
    system, machine = platform.system().lower(), platform.machine()
    if machine == "x86_64" and cpu_flags() >= X86_64_V3:
        return f"{system}-x86_64-v3"
    return f"{system}-{machine}"


def cpu_flags() -> set[str]:
    """Features of this CPU as Linux names them; empty where they cannot be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return set(flags.partition(":")[2].split())


BACKEND = Backend(code=True, exchanges=True, open=_open)
