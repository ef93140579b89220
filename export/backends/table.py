"""The one list of compiled forms, as export sees it; what runs them is triforces_deploy/payloads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from importlib import import_module

import torch

from triforces_deploy.payloads.base import Payload, PayloadInfo, UnusableError

from .base import Captured, Lowered

MODULES = {
    "aoti": "triforces_deploy.export.backends.aoti",
    "torchscript": "triforces_deploy.export.backends.torchscript",
    "export": "triforces_deploy.export.backends.program",
    "onnx": "triforces_deploy.export.backends.onnx",
    "onnx-positions": "triforces_deploy.export.backends.onnx_positions",
}
"""Name on the command line and in a file → module whose ``lower`` makes it."""

DEFAULT = ("aoti", "torchscript")


def compile_all(backends: Sequence[str], captured: Captured, report: Callable[[str], None]) -> tuple[list[Payload], list[str]]:
    """Each of the back ends that can be made here, and a line for each that cannot."""
    payloads, notes = [], []
    for backend in backends:
        report(f"compiling for {backend}")
        try:
            payloads.append(compile_payload(backend, captured))
        except UnusableError as error:
            notes.append(f"back end {backend} left out: {error}")
            report(notes[-1])
    return payloads, notes


def compile_payload(backend: str, captured: Captured) -> Payload:
    """Lower a captured graph.

    Args:
        backend: a key of ``MODULES``.
        captured: from :func:`triforces_deploy.export.capture.capture`.

    Raises:
        UnusableError: it cannot be compiled on this machine; the message says why.
    """
    lowered: Lowered = import_module(MODULES[backend]).lower(captured)
    info = PayloadInfo(
        backend=backend,
        precision=captured.facts.precision,
        target=lowered.target,
        torch=torch.__version__,
        sha256=hashlib.sha256(lowered.content).hexdigest(),
        outputs=captured.outputs,
        details={
            **lowered.details,
            "bytes_per_edge": captured.bytes_per_edge,
            "bytes_per_atom": captured.bytes_per_atom,
            "lean": captured.lean,
        },
    )
    return Payload(info, lowered.content)
