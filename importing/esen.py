"""Public eSEN models as ours: the same numbers, for one of their data sets; conservative or direct.

A file of fairchem-core holds the options of the model, its averaged weights, and tasks with the scale and references of
the energies of each data set. Charge and spin are part of the model here: 0, and the spin is unknown but for molecules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ase.data import atomic_numbers, chemical_symbols
from torch import Tensor

from triforces_deploy.config import BackboneConfig, ModelConfig, as_dict
from triforces_deploy.errors import UserError
from triforces_deploy.graph import N_NUMBERS
from triforces_deploy.model import Model

from .esen_direct import direct_state, has_stress, scales_of
from .esen_table import converted, options, readout_prefix
from .foreign import read_object
from .imported import Imported

MOLECULES = "omol"
"""The data set in which every structure has a spin: 1 where nobody says another."""


def import_esen(path: Path, head: str | None, elements: Sequence[str] | None) -> Imported:
    """Convert a checkpoint for inference of fairchem-core; fairchem-core is not needed, and none of its code runs.

    Args:
        path: the file.
        head: the data set whose energies are wanted; None where there is but one.
        elements: only these, in this order. None keeps all that the tables have.

    Raises:
        UserError: no such file, or what it holds is not represented here.
    """
    name = str(path)
    public = read_object(path, "an eSEN checkpoint for inference, as fairchem-core saves it")
    parts = {key: public.state.get(key) for key in ("model_config", "ema_state_dict", "tasks_config")}
    for key, value in parts.items():
        if not isinstance(value, dict | list) or (key != "tasks_config" and not isinstance(value, dict)):
            raise UserError(f"{name} has no {key}; expected an eSEN checkpoint for inference, as fairchem-core saves it")
    tasks = _energy_tasks(parts["tasks_config"], name)
    dataset = _chosen(tasks, head, name)
    settings = parts["model_config"].get("backbone", {})
    config, cutoff = options(settings, dataset, 1 if dataset == MOLECULES else 0, name)
    weights = {key.replace("module.", ""): t for key, t in parts["ema_state_dict"].items() if isinstance(t, Tensor) and t.ndim}
    direct = bool(settings.get("direct_forces", True))
    heads: tuple[dict[str, Tensor], set[str]] = {}, set()
    if direct:
        of_heads = parts["model_config"].get("heads", {})
        scales = scales_of(parts["tasks_config"], of_heads, has_stress(weights), dataset, name)
        heads = direct_state(weights, scales, config.hidden, name)
    state = converted(weights, config, settings, readout_prefix(weights, name), heads[1], name) | heads[0]
    model_config = ModelConfig(
        elements=_elements(weights["backbone.sphere_embedding.weight"].shape[0], elements, name),
        cutoff=cutoff,
        backbone=BackboneConfig("esen", as_dict(config)),
        composition=None,
        structure=None,
        head_hidden=(config.hidden, config.hidden),
        direct=direct,
        direct_stress=not direct or has_stress(weights),
    )
    model = Model(model_config)
    model.set_network_dtype(torch.float64)
    state |= _energies(tasks[dataset], name)
    expected = {key: tensor.shape for key, tensor in model.state_dict().items()}
    if {key: tensor.shape for key, tensor in state.items()} != expected:
        odd = sorted(set(expected) ^ set(state)) or [key for key in expected if state[key].shape != expected[key]]
        raise UserError(f"{name}: {odd[0]} does not fit the sizes of the model; the file is damaged")
    model.load_state_dict(state)
    said: dict[str, object] = {"class": public.path, "dataset": dataset, "charge": config.charge, "spin": config.spin}
    return Imported(model.eval().requires_grad_(False), said)


def _energy_tasks(tasks: Any, name: str) -> dict[str, Mapping[str, Any]]:
    """What is said of the energies of each data set."""
    listed = list(tasks.values()) if isinstance(tasks, dict) else tasks
    found = {dataset: task for task in listed if task["property"] == "energy" for dataset in task["datasets"]}
    if not found:
        raise UserError(f"{name} has no task that is an energy; only models of energies are represented here")
    return found


def _chosen(tasks: Mapping[str, Any], head: str | None, name: str) -> str:
    if head is None and len(tasks) == 1:
        return next(iter(tasks))
    if head is None or head not in tasks:
        what = "has several data sets, choose one" if head is None else f"has no data set '{head}'"
        raise UserError(f"{name} {what} with --head: {', '.join(tasks)}")
    return head


def _elements(n_numbers: int, elements: Sequence[str] | None, name: str) -> tuple[str, ...]:
    known = chemical_symbols[1:n_numbers]
    for symbol in elements or ():
        if symbol not in known:
            last = chemical_symbols[n_numbers - 1]
            beyond = f"; it knows those up to {last}" if symbol in atomic_numbers else ", which is no chemical symbol"
            raise UserError(f"--elements: {name} does not know '{symbol}'{beyond}")
    return tuple(elements or known)


def _energies(task: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """References and scale, E = rmsd · Σ ε_i + Σ E0[Z_i]."""
    said = task.get("normalizer") or {}
    if float(said.get("mean", 0.0)) != 0.0:
        raise UserError(
            f"{name}: energies are shifted by {said['mean']} per structure, which no sum over atoms is: not represented"
        )
    references = torch.zeros(N_NUMBERS, dtype=torch.float64)
    given = (task.get("element_references") or {}).get("element_references")
    if given is not None:
        values = given["_args_"][0] if isinstance(given, dict) else given
        values = torch.as_tensor(values, dtype=torch.float64)[:N_NUMBERS]
        references[: len(values)] = values
    return {"references": references, "scale": torch.tensor(float(said.get("rmsd", 1.0)), dtype=torch.float64)}
