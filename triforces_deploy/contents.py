"""What an artifact holds, and how that becomes the state of a file and comes back out of one that nobody vouches for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from triforces_deploy.certificate import Certificate
from triforces_deploy.config import ModelConfig, as_dict, read
from triforces_deploy.errors import UserError
from triforces_deploy.payloads.base import PayloadInfo
from triforces_deploy.potential import Facts
from triforces_deploy.precision import PRECISIONS

KIND = "triforces-deploy artifact"
FORMAT = 2
UNIFIED = "triforces_deploy.unified Unified"
"""The one class that a file mentions; see unified.py."""


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
    certificate: Certificate | None = None
    """What `tfdeploy certify` found."""


@dataclasses.dataclass(frozen=True)
class Artifact:
    """The content of a file."""

    metadata: Metadata
    weights: dict[str, Tensor]
    payloads: dict[str, bytes]
    """Back end → compiled form."""


def to_state(artifact: Artifact) -> dict[str, Any]:
    """What a file holds: text, numbers and tensors."""
    metadata = json.dumps(as_dict(artifact.metadata))
    return {
        "kind": KIND,
        "format": FORMAT,
        "metadata": metadata,
        "metadata_sha256": hashlib.sha256(metadata.encode()).hexdigest(),
        "element_types": list(artifact.metadata.facts.elements),
        "cutoff": artifact.metadata.facts.cutoff,
        "weights": artifact.weights,
        "payloads": {k: torch.frombuffer(bytearray(v), dtype=torch.uint8) for k, v in artifact.payloads.items()},
    }


def from_state(state: object, name: str) -> Artifact:
    """The artifact that a state describes, after everything in it has been checked against everything else.

    Raises:
        UserError: not an artifact, from a newer version, or something in it does not fit the rest.
    """
    if not isinstance(state, dict) or state.get("kind") != KIND:
        raise UserError(f"{name} is not an artifact of ours; expected a file written by `tfdeploy export`")
    try:
        return _checked(state, name)
    except UserError:
        raise
    except Exception as error:  # a forged state fails in its own way at every field
        raise UserError(f"{name} is damaged: {type(error).__name__} in its content; copy it again or export anew") from error


def _checked(state: dict[str, Any], name: str) -> Artifact:
    damaged = UserError(f"{name} is damaged: its content does not match its own hashes; copy it again or export anew")
    version, text = state["format"], state["metadata"]
    if type(version) is not int or version < 1:
        raise damaged
    if version > FORMAT:
        raise UserError(f"{name} has artifact format {version}, this version reads up to {FORMAT}; update triforces-deploy")
    if hashlib.sha256(text.encode()).hexdigest() != state["metadata_sha256"]:
        raise damaged
    data = json.loads(text)
    for step in range(version, FORMAT):
        data = UPGRADES[step](data)
    metadata = read(Metadata, data, f"{name}: metadata")
    facts = metadata.facts
    if tuple(state["element_types"]) != facts.elements or state["cutoff"] != facts.cutoff:
        raise damaged
    weights = _tensors(state["weights"], damaged)
    payloads = {k: v.numpy().tobytes() for k, v in _tensors(state["payloads"], damaged).items()}
    infos = {info.backend: info for info in metadata.payloads}
    if len(infos) != len(metadata.payloads) or {k: sha256(v) for k, v in payloads.items()} != {
        k: info.sha256 for k, info in infos.items()
    }:
        raise damaged
    if hash_weights(weights) != metadata.weights_sha256:
        raise damaged
    refuse_not_finite(weights, name)
    _refuse_contradictions(metadata, name)
    return Artifact(metadata, weights, payloads)


def _tensors(value: Any, damaged: UserError) -> dict[str, Tensor]:
    if not isinstance(value, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items()):
        raise damaged
    return value


def refuse_not_finite(weights: dict[str, Tensor], name: str) -> None:
    """UserError where a weight is NaN or infinite."""
    bad = [key for key, tensor in weights.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise UserError(f"{name} holds NaN or infinity in {bad[0]}; its training diverged, take an earlier checkpoint")


def _refuse_contradictions(metadata: Metadata, name: str) -> None:
    """Facts are what hosts rely on; a file whose facts are not those of its model was not written by us."""
    facts, config = metadata.facts, metadata.config
    wrong = {
        "elements": not facts.elements or not set(facts.elements) <= set(config.elements),
        "cutoff": facts.cutoff != config.cutoff or not math.isfinite(facts.cutoff),
        "precision": facts.precision not in PRECISIONS,
        "max_neighbours": facts.max_neighbours != config.max_neighbours,
        "composition": facts.composition not in ("live", "frozen", "none"),
        "exchange_widths": bool(facts.exchange_widths)
        and (len(facts.exchange_widths) != facts.n_exchanges or min(facts.exchange_widths) < 1),
        "reference": not set(facts.reference) <= set(facts.elements)
        or not all(isinstance(n, int | float) and math.isfinite(n) and n >= 0 for n in facts.reference.values()),
    }
    for fact, is_wrong in wrong.items():
        if is_wrong:
            raise UserError(f"{name}: its {fact} are not those of the model in it; export it anew from the checkpoint")
    config.numbers()


def _name_precisions(data: dict[str, Any]) -> dict[str, Any]:
    """Format 1 had 'dtype' where there is a named precision now, and policies beside the facts."""
    facts = {**data["facts"], "precision": data["facts"]["dtype"], "policies": data["policies"]}
    payloads = [{**info, "precision": info["dtype"]} for info in data["payloads"]]
    for mapping in (facts, *payloads):
        del mapping["dtype"]
    return {**{k: v for k, v in data.items() if k != "policies"}, "facts": facts, "payloads": payloads}


UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _name_precisions}
"""Format → what turns its metadata into those of the next."""


def sha256(content: bytes) -> str:
    """Hexadecimal digest."""
    return hashlib.sha256(content).hexdigest()


def hash_weights(weights: dict[str, Tensor]) -> str:
    """Digest of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()
