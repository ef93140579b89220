"""May this payload run here? One table of what can stand in its way, and what is done about it."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch

from triforces_deploy.payloads.base import PayloadInfo, UnusableError
from triforces_deploy.payloads.table import MODULES, backend

Action = Literal["run", "rebuild", "leave out"]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What is to be done with a payload."""

    action: Action
    """'rebuild': the same form is made anew on this machine from the safe core of the file."""
    reason: str = ""
    """Why it does not run as it is."""


NOT_TRUSTED = "it was not made here, and it is code; `tfdeploy trust FILE` lets the file's own run"


def judge(info: PayloadInfo, trusted: bool, device: torch.device | None = None) -> Verdict:
    """The verdict on one payload on this machine, for a device or, with None, for the one it was made for.

    ================================  ==========================================================================
    made by a back end unknown here   left out: update triforces-deploy
    code, file not trusted            rebuilt
    another torch                     rebuilt: compiled forms are promised for one version
    another kind of CPU, or features  rebuilt: it would kill the process
    missing from this one
    another kind of device than the   rebuilt; left out where no rebuilding makes one
    one asked for
    its own library missing           left out, with the pip line (found when it is opened)
    otherwise                         runs
    ================================  ==========================================================================

    The format of the file as a whole is judged by contents.py: an older one is upgraded, a newer one refused.
    """
    if info.backend not in MODULES:
        return Verdict("leave out", f"this version does not know the back end {info.backend}; update triforces-deploy")
    row = backend(info.backend)
    if row.code and not trusted:
        return Verdict("rebuild", NOT_TRUSTED)
    if device is not None and device.type not in row.devices(info):
        made = " or ".join(row.devices(info))
        return Verdict("rebuild" if row.code else "leave out", f"it runs on {made} only, asked for is {device.type}")
    try:
        row.check(info)
    except UnusableError as error:
        return Verdict("rebuild" if row.code else "leave out", str(error))
    return Verdict("run")
