"""The one list of compiled forms, as export sees it; what runs them is triforces_deploy/payloads."""

from __future__ import annotations

import hashlib
from importlib import import_module

import torch

from triforces_deploy.payloads.base import Payload, PayloadInfo

from .base import Captured, Lowered

MODULES = {
    "aoti": "triforces_deploy.export.backends.aoti",
    "torchscript": "triforces_deploy.export.backends.torchscript",
}
"""Name on the command line and in a file → module whose ``lower`` makes it."""

DEFAULT = ("aoti", "torchscript")


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
        details=lowered.details,
    )
    return Payload(info, lowered.content)
