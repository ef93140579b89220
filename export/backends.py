"""One captured graph, lowered to each compiled form: a function from graph module to bytes per back end."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

from triforces_deploy.graph import Graph
from triforces_deploy.payloads import PayloadInfo, UnusableError, aoti_target, flat_inputs

PORTABLE_X86 = {"cpp.march": "x86-64-v3", "cpp.simdlen": 256}
"""Inductor's default is the compiling machine's own instruction set, which kills the process on an older CPU."""


@dataclasses.dataclass(frozen=True)
class Payload:
    """A compiled form and what metadata says of it."""

    info: PayloadInfo
    content: bytes


def compile_payload(backend: str, module: GraphModule, example: Graph, dtype: str) -> Payload:
    """Lower a captured graph.

    Args:
        backend: a key of ``BACKENDS``.
        module: from :func:`triforces_deploy.export.capture.capture`.
        example: the graph it was captured with.
        dtype: precision of the network, for the record.

    Raises:
        UnusableError: it cannot be compiled on this machine; the message says why.
    """
    target, lower = BACKENDS[backend]
    content = lower(module, example)
    digest = hashlib.sha256(content).hexdigest()
    return Payload(PayloadInfo(backend, dtype, target(), torch.__version__, digest), content)


def _to_torchscript(module: GraphModule, example: Graph) -> bytes:  # noqa: ARG001
    """Scripted, not traced: a trace of a captured graph silently freezes the numbers of atoms and edges."""
    named = copy.deepcopy(module)
    for node in named.graph.nodes:
        if node.target is torch.ops.aten.sym_size.int:
            node.target = torch.ops.aten.size
        elif isinstance(node.target, torch._ops.OpOverload):
            node.target = node.target.overloadpacket  # the language knows operators by name, not by overload
    named.recompile()
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated, and remarks on torch's own module
        torch.jit.save(torch.jit.script(named), buffer)
    return buffer.getvalue()


def _to_aoti(module: GraphModule, example: Graph) -> bytes:
    if shutil.which("g++") is None:
        raise UnusableError("no C++ compiler (g++) on the path; install one, e.g. `apt install g++`")
    n_atoms, n_edges, n_structures = (torch.export.Dim(name, min=0) for name in ("N", "E", "G"))
    shapes = ({0: n_atoms}, {1: n_edges}, {0: n_edges}, {0: n_atoms}, {0: n_atoms}, {0: n_structures})
    program = torch.export.export(module, flat_inputs(example), dynamic_shapes=shapes)
    options: dict[str, Any] = dict(PORTABLE_X86) if aoti_target().endswith("x86_64-v3") else {}
    threads = torch.get_num_threads()
    # With several threads Inductor would write parallel loops of atomic additions, which are slower here and, worse,
    # not repeatable.
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="tfdeploy-") as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Inductor's remarks on its own internals
            package = Path(folder) / "model.pt2"
            torch._inductor.aoti_compile_and_package(program, package_path=str(package), inductor_configs=options)
            return package.read_bytes()
    finally:
        torch.set_num_threads(threads)


BACKENDS: dict[str, tuple[Callable[[], str], Callable[[GraphModule, Graph], bytes]]] = {
    "aoti": (aoti_target, _to_aoti),
    "torchscript": (lambda: "any", _to_torchscript),
}
"""Back end → (the machine its payload needs, how to make it)."""
