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
FLAGS = "cpu_flags"
"""Key of ``PayloadInfo.details``: the CPU features that a native package needs, in the words of Linux."""


def _open(_info: PayloadInfo, content: bytes, device: torch.device) -> Run:
    # Unpacked below a folder of ours that goes as soon as the code is mapped: the loader cleans up only when Python ends
    # properly, which it does not inside LAMMPS, and campaigns would fill the disk. The loader underneath
    # torch._inductor's own is used because importing that costs seconds.
    with tempfile.TemporaryDirectory(prefix="tfdeploy-") as folder, _temporary_directory(folder):
        package = Path(folder) / "model.pt2"
        package.write_bytes(content)
        try:
            # Run by one thread at a time (True): without its locks it can be recorded as a CUDA graph.
            index = -1 if device.index is None else device.index
            compiled = torch._C._aoti.AOTIModelPackageLoader(str(package), "model", True, 1, index)
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


def check(info: PayloadInfo) -> None:
    """UnusableError where the package would not load or, worse, would kill the process with an unknown instruction."""
    check_torch(info)
    system = _system()
    if info.target != system and not info.target.startswith(f"{system}-"):
        raise UnusableError(f"compiled for {info.target}, this machine is {system}")
    kind = info.target.removeprefix(f"{system}-")
    if kind.startswith("cuda-"):
        _check_gpu(kind.removeprefix("cuda-"))
        return
    needed = X86_64_V3 if kind == "v3" else info.details.get(FLAGS)
    if needed is None:
        raise UnusableError(f"compiled for {info.target}, without a list of the CPU features it needs")
    missing = sorted(set(needed) - cpu_flags())
    if missing:
        raise UnusableError(f"compiled for {info.target}, this CPU lacks {', '.join(missing[:4])}")


def _check_gpu(kind: str) -> None:
    if not torch.cuda.is_available():
        raise UnusableError("compiled for a GPU, here is none")
    here = gpu()
    if kind != here:
        raise UnusableError(f"compiled for a GPU of kind {kind}, here is {here}")


def gpu() -> str:
    """Kind of the GPU, e.g. 'sm_90'."""
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def target(native: bool = False, device: str = "cpu") -> str:
    """What a package made here is for, in the words of ``PayloadInfo.target``."""
    if device == "cuda":
        return f"{_system()}-cuda-{gpu()}"
    portable = platform.machine() == "x86_64" and cpu_flags() >= X86_64_V3
    return f"{_system()}-v3" if portable and not native else f"{_system()}-native"


def machine(device: torch.device) -> str:
    """The target, and for want of a portable one this very CPU."""
    name = target(device=device.type)
    return f"{name} {' '.join(sorted(cpu_flags()))}" if name.endswith("-native") else name


def _system() -> str:
    return f"{platform.system().lower()}-{platform.machine()}"


def _devices(info: PayloadInfo) -> tuple[str, ...]:
    return ("cuda",) if "-cuda-" in info.target else ("cpu",)


def cpu_flags() -> set[str]:
    """Features of this CPU as Linux names them; empty where they cannot be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return set(flags.partition(":")[2].split())


BACKEND = Backend(code=True, exchanges=True, open=_open, check=check, machine=machine, devices=_devices)
