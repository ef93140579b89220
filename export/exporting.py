"""Checkpoint in, one verified file out."""

from __future__ import annotations

import dataclasses
import platform
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from ase import Atoms

from triforces_deploy import __version__, checkpoint
from triforces_deploy.artifact import Artifact, Metadata, Parity, hash_weights, potential, write
from triforces_deploy.errors import UserError
from triforces_deploy.files import sha256_of
from triforces_deploy.model import Model
from triforces_deploy.payloads.base import Payload, UnusableError
from triforces_deploy.potential import Facts, Potential
from triforces_deploy.precision import PRECISIONS

from .backends.table import DEFAULT, compile_payload
from .capture import capture
from .probes import probe_structures
from .verify import check, compare, parity

FLOAT32_AGAINST_FLOAT64 = 1e-3
"""Rounding of a whole float32 evaluation that is still a rounding, relative to the largest force of a structure."""

Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """What is decided at export."""

    precision: str = "float64"
    """A key of ``precision.PRECISIONS``."""
    composition: str = "live"
    """'live', or 'frozen' to that of ``structure``."""
    structure: Atoms | None = None
    backends: Sequence[str] = DEFAULT
    """Compiled forms to put into the file; the eager model always is."""
    embeddings: bool = False
    """Whether compiled forms also return the features of each stream."""


def export(source: Path, out: Path, options: ExportOptions, report: Report = lambda _line: None) -> Artifact:
    """Compile a checkpoint, compare every compiled form with the eager model, and write the file if they agree.

    Args:
        source: checkpoint.
        out: where the artifact appears, only after verification.
        options: precision, composition policy, back ends.
        report: called with a line at each stage.

    Raises:
        UserError: unreadable checkpoint, a policy that cannot hold, or a compiled form that is not equal to eager.
    """
    model, provenance = checkpoint.load(source)
    refuse_unfit(model)
    model.set_network_dtype(PRECISIONS[options.precision].dtype)
    facts = _facts(model, options)
    payloads, notes = _compile(model, facts, options, report)
    metadata = Metadata(
        facts=dataclasses.replace(facts, policies=(*facts.policies, *notes)),
        config=model.config,
        parity=(),
        payloads=tuple(p.info for p in payloads),
        weights_sha256=hash_weights(model.state_dict()),
        versions={"triforces_deploy": __version__, "torch": torch.__version__, "python": platform.python_version()},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        provenance={"checkpoint": source.name, "checkpoint_sha256": sha256_of(source), **provenance},
    )
    artifact = Artifact(metadata, dict(model.state_dict()), {p.info.backend: p.content for p in payloads})
    report("verifying against the eager model")
    artifact = dataclasses.replace(artifact, metadata=dataclasses.replace(metadata, parity=_verify(artifact, source)))
    write(out, artifact)
    return artifact


def refuse_unfit(model: Model) -> None:
    """Refuse a model that molecular dynamics cannot use; UserError."""
    facts = model.facts()
    for fact, what in ((facts.conservative, "is not conservative"), (facts.smooth, "is not smooth")):
        if not fact:
            raise UserError(f"the backbone {model.config.backbone.name} {what}; molecular dynamics needs one that is")
    bad = [name for name, tensor in model.state_dict().items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise UserError(f"the checkpoint holds NaN or infinity in {bad[0]}; its training diverged, take an earlier one")


def eager_reference(source: Path, facts: Facts, precision: str) -> Potential:
    """The checkpoint's own model as a potential, in the given precision and under the policies of ``facts``."""
    model, _ = checkpoint.load(source)
    model.set_network_dtype(PRECISIONS[precision].dtype)
    return Potential(dataclasses.replace(facts, precision=precision), model.run, "eager")


def _facts(model: Model, options: ExportOptions) -> Facts:
    facts = _composition(dataclasses.replace(model.facts(), precision=options.precision), options)
    return dataclasses.replace(facts, policies=_policies(facts))


def _composition(facts: Facts, options: ExportOptions) -> Facts:
    if options.composition == "live":
        return facts
    if facts.composition == "none":
        raise UserError("--composition frozen: this model has no composition stream, there is nothing to freeze")
    if options.structure is None or len(options.structure) == 0:
        raise UserError("--composition frozen needs --structure FILE, the structure whose composition is meant")
    reference: dict[str, float] = dict(Counter(options.structure.get_chemical_symbols()))
    strange = sorted(set(reference) - set(facts.elements))
    if strange:
        raise UserError(f"--structure holds {', '.join(strange)}, the model knows {', '.join(facts.elements)} only")
    return dataclasses.replace(facts, composition="frozen", reference=reference)


def _policies(facts: Facts) -> tuple[str, ...]:
    composition = {
        "live": "composition: live, counted over the whole structure at each evaluation",
        "none": "composition: the model has no composition stream",
        "frozen": "composition: frozen to " + " ".join(f"{k}{v:g}" for k, v in facts.reference.items()),
    }[facts.composition]
    return (
        composition,
        f"graph: every neighbour within {facts.cutoff} Å, no cap",
        f"elements: {', '.join(facts.elements)}; any other is refused",
        "readout: sum over atoms, accumulated in float64",
        "lattice encoding: none",
    )


def _compile(model: Model, facts: Facts, options: ExportOptions, report: Report) -> tuple[list[Payload], list[str]]:
    if not options.backends:
        return [], []
    report("capturing energy and forces")
    captured = capture(model, facts, options.embeddings)
    payloads, notes = [], []
    for backend in options.backends:
        report(f"compiling for {backend}")
        try:
            payloads.append(compile_payload(backend, captured))
        except UnusableError as error:
            notes.append(f"back end {backend} left out: {error}")
            report(notes[-1])
    return payloads, notes


def _verify(artifact: Artifact, source: Path) -> tuple[Parity, ...]:
    facts = artifact.metadata.facts
    probes = probe_structures(tuple(facts.reference) or facts.elements)
    same = eager_reference(source, facts, facts.precision)
    results = []
    for backend in (*artifact.payloads, "eager"):
        candidate = potential(artifact, "the new artifact", backend)
        rows = compare(candidate, same, probes)
        results.append(parity(backend, f"eager {facts.precision}", rows, PRECISIONS[facts.precision].parity))
        if facts.precision != "float64":
            exact = eager_reference(source, facts, "float64")
            rows = compare(candidate, exact, probes)
            results.append(parity(backend, "eager float64", rows, FLOAT32_AGAINST_FLOAT64))
    for result in results:
        check(result)
    return tuple(results)


def reverify(artifact: Artifact, name: str, against: Path | None, structures: dict[str, Atoms]) -> tuple[Parity, ...]:
    """Repeat the comparison on this machine.

    Args:
        artifact: what is checked; each of its back ends.
        name: how messages call it.
        against: a checkpoint; None compares with the eager model inside the file.
        structures: in place of the probe structures, where not empty.
    """
    facts = artifact.metadata.facts
    chosen = structures or probe_structures(tuple(facts.reference) or facts.elements)
    reference = potential(artifact, name, "eager") if against is None else eager_reference(against, facts, facts.precision)
    label = f"eager {facts.precision}" if against is None else against.name
    return tuple(
        parity(
            backend, label, compare(potential(artifact, name, backend), reference, chosen), PRECISIONS[facts.precision].parity
        )
        for backend in (*artifact.payloads, *(() if against is None else ("eager",)))
    )


def summary(artifact: Artifact) -> dict[str, Any]:
    """What `tfdeploy info --json` prints."""
    return {
        **dataclasses.asdict(artifact.metadata),
        "parameters": sum(t.numel() for t in artifact.weights.values()),
        "payload_bytes": {k: len(v) for k, v in artifact.payloads.items()},
    }
