"""What training leaves behind: everything that rebuilds the model, and where it came from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from triforces_deploy import __version__
from triforces_deploy.config import ModelConfig, as_dict, read
from triforces_deploy.errors import UserError
from triforces_deploy.files import existing, replacing
from triforces_deploy.model import Model
from triforces_deploy.units import LAMMPS_UNITS

KIND = "triforces-deploy checkpoint"
FORMAT = 1

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
    with replacing(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # how torch reports a full disk
            raise UserError(f"cannot write {path}: {str(error).splitlines()[0]}; free some space") from error


def load(path: Path) -> tuple[Model, dict[str, Any]]:
    """Read a checkpoint without executing anything in it.

    Returns:
        The model, in evaluation mode and in the precision it was trained in, and the provenance.

    Raises:
        UserError: no such file, not a checkpoint, damaged, or written by a newer version.
    """
    content = _read(existing(path, "a checkpoint written by `tfdeploy train`"))
    model = Model(read(ModelConfig, json.loads(content["config"]), f"{path}: config"))
    weights: dict[str, torch.Tensor] = content["state"]
    model.set_network_dtype(weights["head.layers.0.weight"].dtype)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{path}: weights do not fit the configuration stored beside them; the file is damaged") from error
    return model.eval().requires_grad_(False), json.loads(content["provenance"])


def _read(path: Path) -> dict[str, Any]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader fails in its own way at every byte
        raise UserError(f"{path} is not a checkpoint of ours, or is damaged; make it again with `tfdeploy train`") from error
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise UserError(f"{path} is not a checkpoint of ours; expected a .ckpt file written by `tfdeploy train`")
    if content["format"] > FORMAT:
        raise UserError(
            f"{path} has checkpoint format {content['format']}, this version reads up to {FORMAT}; update triforces-deploy"
        )
    upgraded: dict[str, Any] = content
    while upgraded["format"] < FORMAT:
        upgraded = UPGRADES[upgraded["format"]](upgraded)
    return upgraded
