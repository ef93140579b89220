"""The deployable file: one for ASE, for LAMMPS on any number of ranks, and for whoever wants to check it.

A safe core - JSON and plain tensors, from which our own classes rebuild the model - and any number of compiled payloads.
Nothing in it refers to a path or to a class other than :class:`triforces_deploy.unified.Unified`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triforces_deploy import checkpoint
from triforces_deploy.config import ModelConfig, as_dict, read
from triforces_deploy.errors import UserError
from triforces_deploy.files import existing, replacing
from triforces_deploy.model import Model
from triforces_deploy.payloads.base import OUTPUTS, PayloadInfo, UnusableError
from triforces_deploy.payloads.table import PREFERENCE
from triforces_deploy.payloads.table import backend as backend_row
from triforces_deploy.potential import Facts, Potential
from triforces_deploy.precision import PRECISIONS
from triforces_deploy.unified import Unified

KIND = "triforces-deploy artifact"
FORMAT = 2


@dataclasses.dataclass(frozen=True)
class Parity:
    """How far one back end is from the eager model, the largest over the probe structures; relative to the largest value."""

    backend: str
    reference: str
    """What it was compared with, e.g. 'eager float64'."""
    structures: int
    energy: float
    forces: float
    stress: float
    tolerance: float


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What the file says of itself."""

    facts: Facts
    config: ModelConfig
    parity: tuple[Parity, ...]
    payloads: tuple[PayloadInfo, ...]
    weights_sha256: str
    versions: dict[str, str]
    created: str
    """UTC, ISO 8601."""
    provenance: dict[str, Any]
    """Of the checkpoint, its own sha256 included."""


@dataclasses.dataclass(frozen=True)
class Artifact:
    """The content of a file."""

    metadata: Metadata
    weights: dict[str, Tensor]
    payloads: dict[str, bytes]
    """Back end → compiled form."""


def load(path: str | Path, backend: str | None = None) -> Potential:
    """Open an artifact for running.

    Args:
        path: the file.
        backend: insist on 'aoti', 'torchscript' or 'eager'; None takes the fastest that works here.

    Raises:
        UserError: no such file, not an artifact, damaged, from a newer version, or the back end cannot run here.
    """
    return potential(read_artifact(Path(path)), str(path), backend)


def potential(artifact: Artifact, name: str, backend: str | None = None) -> Potential:
    """The runnable form of an artifact; see :func:`load`."""
    facts = artifact.metadata.facts
    known = {info.backend: info for info in artifact.metadata.payloads}
    notes: list[str] = []
    for choice in PREFERENCE if backend is None else (backend,):
        if choice == "eager":
            model = rebuild(artifact)
            run = partial(model.run, with_embeddings=True)
            return Potential(facts, run, "eager", (*OUTPUTS, *model.stream_names()), notes=tuple(notes))
        if choice not in known:
            why = f"the file holds no {choice} payload"
        else:
            try:
                row, info = backend_row(choice), known[choice]
                compiled = row.open(info, artifact.payloads[choice])
                return Potential(facts, compiled, choice, info.outputs, row.exchanges, tuple(notes))
            except UnusableError as error:
                why = str(error)
        notes.append(f"back end {choice} not used: {why}")
    raise UserError(f"{name}: {notes[-1]}; available: {', '.join([*known, 'eager'])}")


def rebuild(artifact: Artifact) -> Model:
    """The eager model from the safe core, in the precision of the artifact."""
    model = Model(artifact.metadata.config)
    model.set_network_dtype(PRECISIONS[artifact.metadata.facts.precision].dtype)
    model.load_state_dict(artifact.weights)
    return model.eval().requires_grad_(False)


def write(path: Path, artifact: Artifact) -> None:
    """Write the file; it appears only when complete."""
    metadata = json.dumps(as_dict(artifact.metadata))
    state = {
        "kind": KIND,
        "format": FORMAT,
        "metadata": metadata,
        "metadata_sha256": hashlib.sha256(metadata.encode()).hexdigest(),
        "element_types": list(artifact.metadata.facts.elements),
        "cutoff": artifact.metadata.facts.cutoff,
        "weights": artifact.weights,
        "payloads": {k: torch.frombuffer(bytearray(v), dtype=torch.uint8) for k, v in artifact.payloads.items()},
    }
    with replacing(path) as temporary:
        try:
            torch.save(Unified(state), temporary)
        except RuntimeError as error:  # how torch reports a full disk
            raise UserError(f"cannot write {path}: {str(error).splitlines()[0]}; free some space") from error


def read_artifact(path: Path) -> Artifact:
    """Read a file without executing anything in it, and check that nothing in it has changed.

    Raises:
        UserError: no such file, not an artifact, damaged, or from a newer version.
    """
    existing(path, "an artifact written by `tfdeploy export`")
    try:
        with torch.serialization.safe_globals([Unified]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is not an artifact of ours; expected a file written by `tfdeploy export`") from error
    except Exception as error:  # torch's reader fails in its own way at every byte
        raise UserError(f"{path} is damaged or truncated; copy it again or make it anew with `tfdeploy export`") from error
    if isinstance(content, dict) and content.get("kind") == checkpoint.KIND:
        raise UserError(f"{path} is a checkpoint; turn it into an artifact with `tfdeploy export {path} -o triforces.pt`")
    if not isinstance(content, Unified):
        raise UserError(f"{path} is not an artifact of ours; expected a file written by `tfdeploy export`")
    return _artifact(content.state, str(path))


def potential_from_state(state: dict[str, Any], name: str) -> Potential:
    """The runnable form of what :class:`Unified` holds."""
    return potential(_artifact(state, name), name)


def _artifact(state: dict[str, Any], name: str) -> Artifact:
    damaged = UserError(f"{name} is damaged: its content does not match its own hashes; copy it again or export anew")
    if state.get("kind") != KIND:
        raise UserError(f"{name} is not an artifact of ours; expected a file written by `tfdeploy export`")
    if state["format"] > FORMAT:
        raise UserError(
            f"{name} has artifact format {state['format']}, this version reads up to {FORMAT}; update triforces-deploy"
        )
    if hashlib.sha256(state["metadata"].encode()).hexdigest() != state["metadata_sha256"]:
        raise damaged
    data = json.loads(state["metadata"])
    for step in range(state["format"], FORMAT):
        data = UPGRADES[step](data)
    metadata = read(Metadata, data, f"{name}: metadata")
    payloads = {k: v.numpy().tobytes() for k, v in state["payloads"].items()}
    hashes = {info.backend: info.sha256 for info in metadata.payloads}
    if {k: hashlib.sha256(v).hexdigest() for k, v in payloads.items()} != hashes:
        raise damaged
    if hash_weights(state["weights"]) != metadata.weights_sha256:
        raise damaged
    return Artifact(metadata, state["weights"], payloads)


def _name_precisions(data: dict[str, Any]) -> dict[str, Any]:
    """Format 1 had 'dtype' where there is a named precision now, and policies beside the facts."""
    facts = {**data["facts"], "precision": data["facts"]["dtype"], "policies": data["policies"]}
    payloads = [{**info, "precision": info["dtype"]} for info in data["payloads"]]
    for mapping in (facts, *payloads):
        del mapping["dtype"]
    return {**{k: v for k, v in data.items() if k != "policies"}, "facts": facts, "payloads": payloads}


UPGRADES = {1: _name_precisions}
"""Format → what turns its metadata into those of the next."""


def hash_weights(weights: dict[str, Tensor]) -> str:
    """Digest of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()
