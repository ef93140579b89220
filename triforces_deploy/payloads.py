"""Compiled forms of a potential: what goes in and out of them, and how each back end runs one."""

from __future__ import annotations

import dataclasses
import io
import os
import platform
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from triforces_deploy.derivatives import Evaluation
from triforces_deploy.graph import Graph

INPUTS = ("numbers", "edge_index", "edge_vector", "batch", "owned", "composition")
"""Fields of a Graph that a captured function takes, in this order. It returns the two tensors of an Evaluation."""

Run = Callable[[Graph], Evaluation]

X86_64_V3 = frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"})
"""What Linux calls the features of the portable instruction set that we compile for (``abm`` is lzcnt)."""


class UnusableError(Exception):
    """Why a payload cannot run here; never fatal, since the model itself is in the file."""


@dataclasses.dataclass(frozen=True)
class PayloadInfo:
    """What metadata says of one payload."""

    backend: str
    """'aoti' or 'torchscript'."""
    dtype: str
    target: str
    """Machine it runs on, e.g. 'linux-x86_64-v3'; 'any' where torch alone suffices."""
    torch: str
    """torch version that made it."""
    sha256: str


def flat_inputs(graph: Graph) -> tuple[Tensor, ...]:
    """The tensors of ``INPUTS``; contiguous, because compiled code assumes it and does not check."""
    fields = graph._asdict()
    return tuple(fields[name].contiguous() for name in INPUTS)


def open_payload(info: PayloadInfo, content: bytes) -> Run:
    """Make a payload callable.

    Raises:
        UnusableError: another torch, another kind of machine, or the loader refused; the message says which.
    """
    return {"aoti": _open_aoti, "torchscript": _open_torchscript}[info.backend](info, content)


def _open_aoti(info: PayloadInfo, content: bytes) -> Run:
    _check_torch(info)
    if info.target != aoti_target():
        raise UnusableError(f"compiled for {info.target}, this machine is {aoti_target()}")
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

    def run(graph: Graph) -> Evaluation:
        return Evaluation(*compiled.run(list(flat_inputs(graph))))

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


def _open_torchscript(info: PayloadInfo, content: bytes) -> Run:
    _check_torch(info)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.*", DeprecationWarning)
        try:
            script = torch.jit.load(io.BytesIO(content), map_location="cpu")
        except RuntimeError as error:
            raise UnusableError(str(error).splitlines()[0]) from error

    def run(graph: Graph) -> Evaluation:
        with torch.no_grad():
            return Evaluation(*script(*flat_inputs(graph)))

    return run


def _check_torch(info: PayloadInfo) -> None:
    here = torch.__version__.split("+")[0]
    if info.torch.split("+")[0] != here:
        raise UnusableError(f"made with torch {info.torch}, here is {here}; export again to have it")


def aoti_target() -> str:
    """The kind of machine this is, in the words of ``PayloadInfo.target``."""
    system, machine = platform.system().lower(), platform.machine()
    if machine == "x86_64" and _cpu_flags() >= X86_64_V3:
        return f"{system}-x86_64-v3"
    return f"{system}-{machine}"


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return set(flags.partition(":")[2].split())
