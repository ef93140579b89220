"""New compiled forms of what is already in an artifact: for this machine, for another file, or for another program."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch

from triforces_deploy import __version__, trust
from triforces_deploy.artifact import Artifact, Metadata, Parity, read_artifact, rebuild, write
from triforces_deploy.errors import UserError
from triforces_deploy.files import replacing
from triforces_deploy.memory import Memory
from triforces_deploy.model import Model
from triforces_deploy.onnx_positions import PositionsModel
from triforces_deploy.payloads.base import OUTPUTS, Payload, UnusableError
from triforces_deploy.payloads.table import backend as row
from triforces_deploy.potential import Potential
from triforces_deploy.verdicts import judge

from .backends.base import Captured
from .backends.program import captured_in
from .backends.table import compile_all, compile_payload
from .capture import capture, example_graph
from .exporting import ExportOptions, trust_own, uncompiled, with_drift
from .policies import PolicyOptions, refuse_backends
from .probes import probe_structures
from .verify import check, known_tolerance, parity
from .verify_positions import compare_form, open_form


def rebuild_payload(artifact: Artifact, backend: str, device: torch.device) -> Payload:
    """The same form as one in the file, compiled here from the safe core and compared with the eager model.

    Args:
        artifact: its model is compiled; its own payloads are not touched.
        backend: one that it holds.
        device: to compile for, where the back end makes a difference, and to compare on.

    Raises:
        UnusableError: it cannot be compiled on this machine.
        UserError: the result is not equal to eager.
    """
    facts, model = artifact.metadata.facts, rebuild(artifact)
    wanted = next(info for info in artifact.metadata.payloads if info.backend == backend)
    extras = wanted.outputs[len(OUTPUTS) :]
    captured = capture(model, facts, extras, wanted.details.get("lean", False))
    payload = compile_payload(backend, dataclasses.replace(captured, device=device.type))
    compiled = row(backend)
    run = compiled.open(payload.info, payload.content, device)
    candidate = Potential(facts, run, backend, payload.info.outputs, compiled.exchanges, memory=Memory(device=device))
    check(_measured(backend, candidate, uncompiled(model, facts), artifact.metadata))
    return payload


def re_export(source: Path, out: Path, options: ExportOptions, report: Callable[[str], None] = lambda _line: None) -> Artifact:
    """A new file with other compiled forms of the model in an artifact; weights, policies and provenance stay.

    They are made from the torch.export program in the file where there is one that may run here, else from the model.

    Args:
        source: artifact.
        out: where the new one appears, only after verification.
        options: back ends; what was decided at the first export cannot be decided again.
        report: called with a line at each stage.

    Raises:
        UserError: unreadable artifact, an option that is decided, or a compiled form that is not equal to eager.
    """
    options.refuse_missing_device()
    old = read_artifact(source)
    _refuse_decided(old, options, source)
    refuse_backends(old.metadata.facts, options.backends)
    model = rebuild(old, str(source))
    payloads: list[Payload] = []
    notes: list[str] = []
    if options.backends:
        captured = _captured(old, model, options, report)
        captured = dataclasses.replace(captured, native=options.native, device=options.device, images=options.images)
        payloads, notes = compile_all(options.backends, captured, report)
    policies = [line for line in old.metadata.facts.policies if not line.startswith("back end ")]
    metadata = dataclasses.replace(
        old.metadata,
        facts=dataclasses.replace(old.metadata.facts, policies=(*policies, *notes)),
        parity=tuple(row for row in old.metadata.parity if row.backend == "eager"),
        payloads=tuple(p.info for p in payloads),
        versions={"triforces_deploy": __version__, "torch": torch.__version__, "python": platform.python_version()},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        certificate=None,  # of other compiled forms
    )
    new = Artifact(metadata, old.weights, {p.info.backend: p.content for p in payloads})
    report("verifying against the eager model")
    reference = uncompiled(model, old.metadata.facts)
    forms = ((name, open_form(new, "the new artifact", name, trusted=True)) for name in new.payloads)
    measured = [_measured(name, form, reference, old.metadata) for name, form in forms]
    for result in measured:
        check(result)
    new = dataclasses.replace(new, metadata=dataclasses.replace(metadata, parity=(*measured, *metadata.parity)))
    new = with_drift(new, options, report)
    write(out, new)
    trust_own(new, out, report)
    return new


def unpack(artifact: Artifact, name: str, backend: str, out: Path) -> str:
    """Write one compiled form as a plain file; the line that says so. UserError where the artifact does not hold it."""
    if backend not in artifact.payloads:
        known = ", ".join(artifact.payloads) or "none, it runs eager"
        raise UserError(f"{name} holds no {backend}; it holds {known}")
    with replacing(out) as temporary:
        temporary.write_bytes(artifact.payloads[backend])
    info = next(info for info in artifact.metadata.payloads if info.backend == backend)
    return f"{out}: {backend} for {info.target}, {info.precision}, made with torch {info.torch}"


def _refuse_decided(artifact: Artifact, options: ExportOptions, source: Path) -> None:
    precision = artifact.metadata.facts.precision
    given, default = dataclasses.asdict(options), dataclasses.asdict(ExportOptions())
    if options.precision not in (default["precision"], precision):
        raise UserError(f"{source} is an artifact of precision {precision}; export its checkpoint for another")
    if any(given[field.name] != default[field.name] for field in dataclasses.fields(PolicyOptions)):
        raise UserError(f"{source} is an artifact, whose policies are frozen; export its checkpoint to decide them anew")


def _captured(artifact: Artifact, model: Model, options: ExportOptions, report: Callable[[str], None]) -> Captured:
    metadata, extras = artifact.metadata, model.extras(options.embeddings)
    info = next((info for info in metadata.payloads if info.backend == "export"), None)
    made = (info.outputs, info.details.get("lean", False)) if info is not None else None
    if info is not None and made == ((*OUTPUTS, *extras), options.lean):
        verdict = judge(info, trust.is_trusted(metadata))
        try:
            if verdict.action == "run":
                report("reading the program in the file")
                return captured_in(Payload(info, artifact.payloads["export"]), example_graph(model), metadata.facts)
            report(f"the program in the file is not used: {verdict.reason}")
        except UnusableError as error:
            report(f"the program in the file is not used: {error}")
    report("capturing energy and forces")
    return capture(model, metadata.facts, extras, options.lean)


def _measured(backend: str, candidate: Potential | PositionsModel, reference: Potential, metadata: Metadata) -> Parity:
    facts = reference.facts
    rows = compare_form(candidate, reference, probe_structures(tuple(facts.reference) or facts.elements))
    return parity(backend, f"eager {facts.precision}", rows, known_tolerance(metadata))
