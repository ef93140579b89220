"""Checkpoint in, one verified file out."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from torch import Tensor

from triforces_deploy import __version__, checkpoint, exchange
from triforces_deploy.artifact import Artifact, Metadata, Parity, hash_weights, potential, remember, write
from triforces_deploy.errors import UserError
from triforces_deploy.files import sha256_of
from triforces_deploy.model import Model
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.onnx_positions import IMAGES
from triforces_deploy.payloads.base import OUTPUTS, Payload
from triforces_deploy.potential import Facts, Potential
from triforces_deploy.precision import PRECISIONS, available

from .backends.table import DEFAULT, compile_all
from .capture import capture
from .certify.dynamics import refuse_drift
from .certify.structures import crystal, defect
from .policies import PolicyOptions, as_trained, decide, refuse_backends
from .probes import probe_structures
from .verify import check, compare, known_tolerance, largest, parity, tolerance
from .verify_positions import compare_form, open_form

Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class ExportOptions(PolicyOptions):
    """What is decided at export."""

    precision: str = "float64"
    """A key of ``precision.PRECISIONS``."""
    backends: Sequence[str] = DEFAULT
    """Compiled forms to put into the file; the eager model always is."""
    embeddings: bool = False
    """Whether compiled forms also return the features of each stream."""
    lean: bool = False
    """Whether compiled forms compute their layers again in the backward pass instead of keeping them."""
    native: bool = False
    """Compile for this very CPU instead of a portable instruction set."""
    device: str = "cpu"
    """'cpu' or 'cuda', of the forms that are compiled for one; the others run on any."""
    images: int = IMAGES
    """Periodic images each way that ``onnx-positions`` can list; see onnx_positions.py."""
    max_drift: float | None = None
    """eV/atom/ps. A model whose total energy drifts faster at constant energy is refused; None does not measure it."""

    def refuse_missing_device(self) -> None:
        """UserError where there is no GPU to compile for, or nothing that multiplies in the wanted precision."""
        if (why := available(self.precision)) is not None:
            raise UserError(f"--precision {self.precision}: {why}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: torch sees no GPU here; export on a machine that has one, or leave --device out")


def export(source: Path, out: Path, options: ExportOptions, report: Report = lambda _line: None) -> Artifact:
    """Compile a checkpoint, compare every compiled form with the eager model, and write the file if they agree.

    Args:
        source: checkpoint.
        out: where the artifact appears, only after verification.
        options: precision, policies, back ends.
        report: called with a line at each stage.

    Raises:
        UserError: unreadable checkpoint, a policy that cannot hold, or a compiled form that is not equal to eager.
    """
    options.refuse_missing_device()
    model, provenance = checkpoint.load_fitted(source)
    model, facts = decide(model, provenance, options)
    refuse_backends(facts, options.backends)
    model.set_network_dtype(PRECISIONS[options.precision].dtype)
    facts = dataclasses.replace(facts, precision=options.precision, exchange_widths=_exchange_widths(model))
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
    artifact = with_drift(artifact, options, report)
    write(out, artifact)
    trust_own(artifact, out, report)
    return artifact


def trust_own(artifact: Artifact, path: Path, report: Report) -> None:
    """What was made here may run here; a list that cannot be written costs a line and no more."""
    try:
        remember(artifact, str(path))
    except UserError as error:
        report(f"{path} is not on the list of trusted files: {error}")


def eager_reference(source: Path, facts: Facts, precision: str, weights: Mapping[str, Tensor] | None = None) -> Potential:
    """The checkpoint's own model as a potential, nothing folded, in the given precision and under the policies of ``facts``.

    Args:
        source: checkpoint.
        facts: of the artifact.
        precision: a key of ``precision.PRECISIONS``.
        weights: of the artifact, whose fitted readout is taken over; without them it is that of the checkpoint.
    """
    model, _ = checkpoint.load(source)
    model.set_network_dtype(PRECISIONS[precision].dtype)
    model = as_trained(model, facts, weights or {})
    return uncompiled(model, dataclasses.replace(facts, precision=precision))


def uncompiled(model: Model, facts: Facts) -> Potential:
    """A model as it is, with all that it can return."""
    extras = model.extras()
    return Potential(facts, partial(model.run, extras=extras), "eager", (*OUTPUTS, *extras))


def _exchange_widths(model: Model) -> tuple[int, ...]:
    """What several ranks will send each other, of an evaluation of a small structure."""
    (smallest, *_) = sorted(probe_structures(model.config.elements).values(), key=len)
    recorder = exchange.Recorder()
    with exchange.using(recorder):
        model(graph_from_atoms(smallest, model.config.cutoff))
    return tuple(recorder.widths)


def _compile(model: Model, facts: Facts, options: ExportOptions, report: Report) -> tuple[list[Payload], list[str]]:
    if not options.backends:
        return [], []
    report("capturing energy and forces")
    captured = capture(model, facts, model.extras(options.embeddings), options.lean)
    captured = dataclasses.replace(captured, native=options.native, device=options.device, images=options.images)
    return compile_all(options.backends, captured, report)


def with_drift(artifact: Artifact, options: ExportOptions, report: Report) -> Artifact:
    """The artifact with a line on its drift, where that is asked for; UserError where it is more than allowed."""
    if options.max_drift is None:
        return artifact
    report("running at constant energy")
    m = artifact.metadata
    cell = defect(crystal(tuple(m.facts.reference) or m.facts.elements))
    line = refuse_drift(potential(artifact, "the new artifact", trusted=True), cell, options.max_drift)
    facts = dataclasses.replace(m.facts, policies=(*m.facts.policies, line))
    return dataclasses.replace(artifact, metadata=dataclasses.replace(m, facts=facts))


def _verify(artifact: Artifact, source: Path) -> tuple[Parity, ...]:
    facts = artifact.metadata.facts
    probes = probe_structures(tuple(facts.reference) or facts.elements)
    same = eager_reference(source, facts, facts.precision, artifact.weights)
    exact = eager_reference(source, facts, "float64", artifact.weights)
    rounded = facts.precision != "float64"
    bounds = PRECISIONS[facts.precision]
    own = largest(parity("eager", "eager float64", compare(same, exact, probes), bounds.rounding)) if rounded else 0.0
    allowed = tolerance(facts.precision, own)
    results = []
    for backend in (*artifact.payloads, "eager"):
        candidate = open_form(artifact, "the new artifact", backend, trusted=True)
        rows = compare_form(candidate, same, probes)
        results.append(parity(backend, f"eager {facts.precision}", rows, allowed))
        if rounded:
            results.append(parity(backend, "eager float64", compare_form(candidate, exact, probes), bounds.rounding))
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
    if against is None:
        reference = potential(artifact, name, "eager")
    else:
        reference = eager_reference(against, facts, facts.precision, artifact.weights)
    label = f"eager {facts.precision}" if against is None else against.name
    names = (*artifact.payloads, *(() if against is None else ("eager",)))
    # A potential calls itself by what runs, which is not the file's own code where that is not trusted.
    candidates = (open_form(artifact, name, backend) for backend in names)
    allowed = known_tolerance(artifact.metadata)
    return tuple(parity(c.backend, label, compare_form(c, reference, chosen), allowed) for c in candidates)


def summary(artifact: Artifact) -> dict[str, Any]:
    """What `tfdeploy info --json` prints."""
    return {
        **dataclasses.asdict(artifact.metadata),
        "parameters": sum(t.numel() for t in artifact.weights.values()),
        "payload_bytes": {k: len(v) for k, v in artifact.payloads.items()},
    }
