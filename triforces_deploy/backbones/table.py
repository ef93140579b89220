"""The one list of backbones. Tests, the command line and the documentation walk it."""

from __future__ import annotations

from importlib import import_module

from triforces_deploy.backbones.base import Backbone

BACKBONES: dict[str, tuple[str, str]] = {
    "esen": ("triforces_deploy.backbones.esen", "ESEN"),
    "mace": ("triforces_deploy.backbones.mace", "MACE"),
    "orb_v3": ("triforces_deploy.backbones.orb_v3", "OrbV3"),
}
"""Name in a recipe → (module, class). A new backbone is one file and one row here."""


def backbone_class(name: str) -> type[Backbone]:
    """The class behind a name of the table; KeyError where there is none."""
    module, cls = BACKBONES[name]
    found: type[Backbone] = getattr(import_module(module), cls)
    return found
