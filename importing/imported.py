"""What an importer makes."""

from __future__ import annotations

import dataclasses

from triforces_deploy.model import Model


@dataclasses.dataclass(frozen=True)
class Imported:
    """A model in float64, and what its provenance says of where it came from."""

    model: Model
    said: dict[str, object]
