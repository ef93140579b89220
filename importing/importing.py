"""Another project's file in, an ordinary checkpoint out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from triforces_deploy import checkpoint
from triforces_deploy.artifact import Parity
from triforces_deploy.building import build
from triforces_deploy.errors import UserError
from triforces_deploy.files import sha256_of

from .esen import import_esen
from .esen_verify import against_esen
from .imported import Imported
from .mace import import_mace
from .mace_verify import against_mace
from .orb import import_orb
from .orb_verify import against_orb

Import = Callable[[Path, str | None, Sequence[str] | None], Imported]
Against = Callable[[Path, Imported], Parity]
KINDS: dict[str, tuple[Import, Against]] = {
    "esen": (import_esen, against_esen),
    "mace": (import_mace, against_mace),
    "orb": (import_orb, against_orb),
}
"""What can be imported: file, head and elements → model; and the comparison with the package that the file comes from."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """What was made."""

    checkpoint: str
    elements: tuple[str, ...]
    cutoff: float
    neighbours: str
    """Which of those within the cutoff an atom sees."""
    parameters: int
    said: dict[str, object]
    parity: Parity | None
    """None where it was not compared."""


def import_file(
    kind: str,
    source: Path,
    out: Path,
    head: str | None = None,
    elements: Sequence[str] | None = None,
    verify: bool = False,
    neighbours: int | None = None,
) -> Summary:
    """Convert a file and write a checkpoint, in float64: its weights hold constants that float32 would round.

    Args:
        kind: a key of ``KINDS``.
        source: the file.
        out: where the checkpoint appears, after the comparison where there is one.
        head: which of several heads.
        elements: only these; None keeps all.
        verify: compare with the package that the file comes from.
        neighbours: let an atom see only so many nearest neighbours, 0 for all; None for as many as the file is known for.

    Raises:
        UserError: a kind that is not known, a file that is not of it or not represented, or numbers that differ.
    """
    if kind not in KINDS:
        raise UserError(f"unknown kind of model '{kind}'; known: {', '.join(KINDS)}")
    convert, against = KINDS[kind]
    made = convert(source, head, elements)
    if neighbours is not None:
        made = _with_cap(made, neighbours)
    parity = against(source, made) if verify else None
    config = made.model.config
    said = {"kind": kind, "file": source.name, "sha256": sha256_of(source), **made.said}
    checkpoint.save(out, made.model, {"imported": said, "elements": list(config.elements)})
    size = sum(p.numel() for p in made.model.parameters())
    seen = "all" if config.max_neighbours is None else f"the nearest {config.max_neighbours}"
    return Summary(str(out), config.elements, config.cutoff, seen, size, said, parity)


def _with_cap(made: Imported, neighbours: int) -> Imported:
    if neighbours < 0:
        raise UserError(f"--neighbours {neighbours}: expected a number of neighbours, or 0 for all")
    model = build(
        dataclasses.replace(made.model.config, max_neighbours=neighbours or None),
        dict(made.model.state_dict()),
        torch.float64,
        "the imported model",
    )
    return dataclasses.replace(made, model=model)
