"""The one list of compiled forms, as a loader sees it; what makes them is export/backends."""

from __future__ import annotations

from importlib import import_module

from triforces_deploy.payloads.base import Backend

MODULES = {
    "aoti": "triforces_deploy.payloads.aoti",
    "torchscript": "triforces_deploy.payloads.torchscript",
    "export": "triforces_deploy.payloads.program",
    "onnx": "triforces_deploy.payloads.onnx",
    "onnx-positions": "triforces_deploy.payloads.onnx_positions",
}
"""Name in a file → module whose ``BACKEND`` runs it."""

PREFERENCE = ("aoti", "torchscript", "eager")
"""What a loader tries when nobody asks for a particular form, fastest first."""


def has_code(name: str) -> bool:
    """Whether payloads of that name are programs; what this version does not know might be."""
    return name not in MODULES or backend(name).code


def backend(name: str) -> Backend:
    """The row of a name; KeyError where there is none."""
    found: Backend = import_module(MODULES[name]).BACKEND
    return found
