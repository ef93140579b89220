"""What training leaves behind: everything that rebuilds the model, and where it came from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triforces_deploy import __version__, torch_file
from triforces_deploy.building import build
from triforces_deploy.config import ModelConfig, as_dict, read
from triforces_deploy.contents import KIND as ARTIFACT_KIND
from triforces_deploy.contents import UNIFIED, hash_weights, sha256
from triforces_deploy.errors import UserError
from triforces_deploy.model import Model
from triforces_deploy.plain_pickle import Instance
from triforces_deploy.units import LAMMPS_UNITS

KIND = "triforces-deploy checkpoint"
FORMAT = 1
WHAT = "a checkpoint written by `tfdeploy train`"
REMEDY = "copy it again or make it anew with `tfdeploy train`"

UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""Format n → function that turns a file of format n into one of format n + 1."""


def save(path: Path, model: Model, provenance: dict[str, Any]) -> None:
    """Write a checkpoint.

    Args:
        path: where to; appears only when complete.
        model: its configuration, weights, references and scale are stored.
        provenance: data, seeds, metrics, versions; anything JSON can hold.
    """
    content = {
        "kind": KIND,
        "format": FORMAT,
        "config": json.dumps(as_dict(model.config)),
        "state": {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()},
        "units": LAMMPS_UNITS,
        "provenance": json.dumps({"triforces_deploy": __version__, "torch": str(torch.__version__), **provenance}),
    }
    torch_file.save(path, {**content, "sha256": _digest(content)})


def load(path: Path) -> tuple[Model, dict[str, Any]]:
    """Read a checkpoint without executing anything in it.

    Returns:
        The model, in evaluation mode and in the precision it was trained in, and the provenance.

    Raises:
        UserError: no such file, not a checkpoint, damaged, or written by a newer version.
    """
    content = _read(path)
    try:
        # Files from before there was a digest have the checksums of the archive alone.
        if "sha256" in content and content["sha256"] != _digest(content):
            raise UserError(f"{path} is damaged: its content does not match its own hash; {REMEDY}")
        config = read(ModelConfig, json.loads(content["config"]), f"{path}: config")
        weights: dict[str, Tensor] = content["state"]
        provenance = dict(json.loads(content["provenance"]))
        model = build(config, weights, weights["head.layers.0.weight"].dtype, str(path))
    except UserError:
        raise
    except Exception as error:  # a forged file fails in its own way at every field
        raise UserError(f"{path} is damaged: {type(error).__name__} in its content; {REMEDY}") from error
    return model, provenance


def load_fitted(path: Path) -> tuple[Model, dict[str, Any]]:
    """As :func:`load`, for whoever needs energies; UserError also where training has not seen any."""
    model, provenance = load(path)
    if "pretrained" in provenance:
        raise UserError(f"{path} is pretrained without labels, its energies mean nothing; run `tfdeploy train finetune`")
    if model.properties is not None and not fits_energies(provenance):
        names = ", ".join(p.name for p in model.config.properties)
        raise UserError(f"{path} is fitted to properties ({names}), its energies mean nothing; train one on energies")
    return model, provenance


def fits_energies(provenance: dict[str, Any]) -> bool:
    """Whether a model with properties was fitted to energies as well."""
    return "energies" in provenance.get("fitted", ())


def _read(path: Path) -> dict[str, Any]:
    content = torch_file.load(path, WHAT, REMEDY, frozenset({UNIFIED}))
    if isinstance(content, Instance):
        content = content.state
        if isinstance(content, dict) and content.get("kind") == ARTIFACT_KIND:
            raise UserError(f"{path} is an artifact, not a checkpoint of ours; give the .ckpt file it was exported from")
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise UserError(f"{path} is not a checkpoint of ours; expected {WHAT}")
    version = content.get("format")
    if type(version) is not int or version < 1:
        raise UserError(f"{path} is damaged: it has no format; {REMEDY}")
    if version > FORMAT:
        raise UserError(f"{path} has checkpoint format {version}, this version reads up to {FORMAT}; update triforces-deploy")
    upgraded: dict[str, Any] = content
    while upgraded["format"] < FORMAT:
        upgraded = UPGRADES[upgraded["format"]](upgraded)
    return upgraded


def _digest(content: dict[str, Any]) -> str:
    said = json.dumps([content["config"], content["provenance"], content["units"]])
    return sha256(f"{said} {hash_weights(content['state'])}".encode())
