"""Another project's file in, an ordinary checkpoint out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from triforces_deploy import checkpoint
from triforces_deploy.artifact import Parity
from triforces_deploy.errors import UserError
from triforces_deploy.files import sha256_of

from .esen import import_esen
from .esen_verify import against_esen
from .imported import Imported
from .mace import import_mace
from .mace_verify import against_mace

Import = Callable[[Path, str | None, Sequence[str] | None], Imported]
Against = Callable[[Path, Imported], Parity]
KINDS: dict[str, tuple[Import, Against]] = {"esen": (import_esen, against_esen), "mace": (import_mace, against_mace)}
"""What can be imported: file, head and elements → model; and the comparison with the package that the file comes from."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """What was made."""

    checkpoint: str
    elements: tuple[str, ...]
    cutoff: float
    parameters: int
    said: dict[str, object]
    parity: Parity | None
    """None where it was not compared."""


def import_file(
    kind: str, source: Path, out: Path, head: str | None = None, elements: Sequence[str] | None = None, verify: bool = False
) -> Summary:
    """Convert a file and write a checkpoint, in float64: its weights hold constants that float32 would round.

    Args:
        kind: a key of ``KINDS``.
        source: the file.
        out: where the checkpoint appears, after the comparison where there is one.
        head: which of several heads.
        elements: only these; None keeps all.
        verify: compare with the package that the file comes from.

    Raises:
        UserError: a kind that is not known, a file that is not of it or not represented, or numbers that differ.
    """
    if kind not in KINDS:
        raise UserError(f"unknown kind of model '{kind}'; known: {', '.join(KINDS)}")
    convert, against = KINDS[kind]
    made = convert(source, head, elements)
    parity = against(source, made) if verify else None
    config = made.model.config
    said = {"kind": kind, "file": source.name, "sha256": sha256_of(source), **made.said}
    checkpoint.save(out, made.model, {"imported": said, "elements": list(config.elements)})
    size = sum(p.numel() for p in made.model.parameters())
    return Summary(str(out), config.elements, config.cutoff, size, said, parity)
