"""The deployable file: one for ASE, for LAMMPS on any number of ranks, and for whoever wants to check it.

A safe core - JSON and plain tensors, from which our own classes rebuild the model - and any number of compiled payloads.
Nothing in it refers to a path or to a class other than :class:`triforces_deploy.unified.Unified`.
"""

from __future__ import annotations

import dataclasses
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from triforces_deploy import checkpoint, kernels, torch_file, trust
from triforces_deploy.building import build
from triforces_deploy.contents import (
    FORMAT,
    KIND,
    UNIFIED,
    UPGRADES,
    Artifact,
    Metadata,
    Parity,
    from_state,
    hash_weights,
    to_state,
)
from triforces_deploy.eager import eager, need_in_blocks, need_of, within_memory
from triforces_deploy.errors import UserError
from triforces_deploy.files import existing
from triforces_deploy.local_builds import rebuilt
from triforces_deploy.memory import CPU, Memory
from triforces_deploy.model import Model
from triforces_deploy.payloads.base import OUTPUTS, Payload, UnusableError
from triforces_deploy.payloads.table import PREFERENCE, backend, has_code
from triforces_deploy.plain_pickle import Instance
from triforces_deploy.potential import Potential
from triforces_deploy.precision import PRECISIONS
from triforces_deploy.unified import Unified
from triforces_deploy.verdicts import judge

__all__ = ["FORMAT", "KIND", "UPGRADES", "Artifact", "Metadata", "Parity", "hash_weights"]  # the nouns, beside the verbs below

WHAT = "an artifact written by `tfdeploy export`"
PROMISES = ("smooth", "conservative", "separable")
REMEDY = "copy it again or make it anew with `tfdeploy export`"


def load(path: str | Path, backend: str | None = None, trust: bool = False, device: torch.device | None = None) -> Potential:
    """Open an artifact for running.

    Args:
        path: the file.
        backend: insist on one of payloads/table.py or 'eager'; None takes the fastest that works here.
        trust: let compiled code of the file run, now and in future; see trust.py. Without it, the code of a file that was
            not made here is rebuilt from the rest of the file.
        device: where it runs; None takes the one that a payload was compiled for, and the CPU for the others.

    Raises:
        UserError: no such file, not an artifact, damaged, from a newer version, or the back end cannot run here.
    """
    artifact = read_artifact(Path(path))
    if trust:
        remember(artifact, str(path))
    return potential(artifact, str(path), backend, device=device)


def remember(artifact: Artifact, name: str) -> None:
    """Let the compiled code of an artifact run on this account; nothing to do where it has none."""
    if any(has_code(info.backend) for info in artifact.metadata.payloads):
        trust.remember(artifact.metadata, name)


def potential(
    artifact: Artifact,
    name: str,
    backend: str | None = None,
    trusted: bool | None = None,
    device: torch.device | None = None,
) -> Potential:
    """The runnable form of an artifact.

    Args:
        artifact: what runs.
        name: how messages call it.
        backend: as for :func:`load`.
        trusted: whether its compiled code may run; None asks the user's list.
        device: as for :func:`load`.
    """
    facts = artifact.metadata.facts
    if trusted is None:
        trusted = trust.is_trusted(artifact.metadata)
    notes: list[str] = []
    for choice in _choices(backend):
        if choice == "eager":
            place = device or CPU
            model, used = kernels.equipped(rebuild(artifact, name).to(place), facts.precision)
            memory = Memory(blocked=partial(need_in_blocks, model) if place.type == "cpu" else None, device=place)
            extras = model.extras()
            run, outputs = eager(model, memory, extras), (*OUTPUTS, *extras)
            return Potential(facts, run, "eager", outputs, notes=tuple(notes), memory=memory, kernels=used)
        try:
            return _opened(artifact, name, choice, trusted, notes, device)
        except UnusableError as error:
            notes.append(f"back end {choice} not used: {error}")
    known = ", ".join([*artifact.payloads, "eager"])
    raise UserError(f"{name}: {notes[-1]}; available: {known}")


def _choices(backend: str | None) -> tuple[str, ...]:
    """What to try, in this order; kernels that are asked for by name are those of the eager form."""
    if backend is not None:
        return (backend,)
    return ("eager",) if kernels.insisted() else PREFERENCE


def _opened(
    artifact: Artifact, name: str, choice: str, trusted: bool, notes: list[str], device: torch.device | None
) -> Potential:
    infos = {info.backend: info for info in artifact.metadata.payloads}
    if choice not in infos:
        raise UnusableError(f"the file holds no {choice} payload")
    payload, label = Payload(infos[choice], artifact.payloads[choice]), choice
    verdict = judge(payload.info, trusted, device)
    if verdict.action == "leave out":
        raise UnusableError(verdict.reason)
    row = backend(choice)
    place = device or _own_device(row.devices(payload.info)[0])
    if verdict.action == "rebuild":
        try:
            payload, label = rebuilt(artifact, name, choice, verdict.reason, place), f"{choice} (rebuilt here)"
        except UnusableError as error:
            raise UnusableError(f"{verdict.reason}; rebuilding it: {error}") from error
        notes.append(f"back end {choice} rebuilt here from the file's model: {verdict.reason}")
    core = dataclasses.replace(artifact, payloads={})  # what a later rebuild needs; compiled forms would stay in memory
    model = cache(lambda: rebuild(core, name).to(place))
    in_blocks = (lambda: need_in_blocks(model())) if place.type == "cpu" else None
    memory = Memory(need_of(payload.info), in_blocks, place)
    run = within_memory(row.open(payload.info, payload.content, place), payload.info, memory, model)
    used = kernels.of_compiled(choice)
    return Potential(artifact.metadata.facts, run, label, payload.info.outputs, row.exchanges, tuple(notes), memory, used)


def _own_device(kind: str) -> torch.device:
    """A device of the kind that a payload was made for; the CPU where there is none, for which it is then rebuilt."""
    return torch.device(kind) if kind != "cuda" or torch.cuda.is_available() else CPU


def rebuild(artifact: Artifact, name: str = "the artifact") -> Model:
    """The eager model from the safe core, in the precision of the artifact; UserError where it does not fit its weights."""
    dtype = PRECISIONS[artifact.metadata.facts.precision].dtype
    model = build(artifact.metadata.config, artifact.weights, dtype, name)
    _refuse_other_facts(artifact, model, name)
    return model


def _refuse_other_facts(artifact: Artifact, model: Model, name: str) -> None:
    """LAMMPS lists ghosts and moves features by these facts; wrong ones would be wrong forces."""
    said, true = artifact.metadata.facts, model.facts()
    for field in ("n_exchanges", "bidirectional", "receptive_field", "units", "max_neighbours", "zbl_overlay", *PROMISES):
        if dataclasses.asdict(said)[field] != dataclasses.asdict(true)[field]:
            raise UserError(f"{name}: its {field} is not that of the model in it; export it anew from the checkpoint")


def write(path: Path, artifact: Artifact) -> None:
    """Write the file; it appears only when complete."""
    torch_file.save(path, Unified(to_state(artifact)))


def read_artifact(path: Path) -> Artifact:
    """Read a file without executing anything in it, and check that nothing in it has changed.

    Raises:
        UserError: no such file, not an artifact, damaged, or from a newer version.
    """
    content = torch_file.load(path, WHAT, REMEDY, frozenset({UNIFIED}))
    if isinstance(content, dict) and content.get("kind") == checkpoint.KIND:
        raise UserError(f"{path} is a checkpoint; turn it into an artifact with `tfdeploy export {path} -o triforces.pt`")
    if not isinstance(content, Instance):
        raise UserError(f"{path} is not an artifact of ours; expected {WHAT}")
    return from_state(content.state, str(path))


def is_artifact(path: Path) -> bool:
    """Whether a file is an artifact rather than a checkpoint; UserError where it is neither."""
    content = torch_file.load(existing(path, f"{checkpoint.WHAT} or {WHAT}"), WHAT, REMEDY, frozenset({UNIFIED}))
    return isinstance(content, Instance)


def potential_from_state(state: dict[str, Any], name: str, device: torch.device | None = None) -> Potential:
    """The runnable form of what :class:`Unified` holds, on a device as for :func:`load`."""
    return potential(from_state(state, name), name, device=device)
