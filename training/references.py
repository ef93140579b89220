"""All that can label: potentials that come with LAMMPS, and tight binding."""

from __future__ import annotations

from collections.abc import Sequence

from triforces_deploy.errors import UserError
from triforces_deploy.training.reference import SOURCES, Reference
from triforces_deploy.training.xtb import METHODS, XtbReference


def reference(potential: str) -> Reference | XtbReference:
    """What a name stands for, to be used in a ``with`` block; UserError where nothing has it."""
    if potential in METHODS:
        return XtbReference(potential)
    if potential in SOURCES:
        return Reference(potential)
    raise UserError(f"potential '{potential}' is unknown; choose one of {', '.join((*SOURCES, *METHODS))}")


def mixes(potential: str, guest: str, hosts: Sequence[str]) -> bool:
    """Whether a potential can label an element beside others; tight binding knows all of them."""
    return potential not in SOURCES or SOURCES[potential].mixes(guest, hosts)
