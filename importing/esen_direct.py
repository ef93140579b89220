"""Heads of public eSEN models that read forces and stress off the features.

Theirs are special cases of ours (see ``triforces_deploy/direct.py``): their weights of vectors and of tensors of degree 2 are
the same for every atom, which a perceptron gives whose last layer is a bias alone. Its layers before that begin at random:
they change no number, and a fine-tuning can make use of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from triforces_deploy.errors import UserError
from triforces_deploy.nn.mlp import mlp

FORCES, STRESS, SCALARS = ".linear.weight", ".l2_linear.weight", ".scalar_block."
"""Ends of the names of their parameters: weights of vectors, of tensors, and the perceptron of the pressure."""
OF_UNITY, OF_DEGREE_2 = 3.0**-0.5, (2.0 / 3.0) ** 0.5
"""Their orthonormal basis of symmetric matrices over ours."""


def has_stress(weights: Mapping[str, Tensor]) -> bool:
    """Whether there is a head for it."""
    return any(key.endswith(STRESS) for key in weights)


def direct_state(
    weights: Mapping[str, Tensor], scales: Mapping[str, float], hidden: int, name: str
) -> tuple[dict[str, Tensor], set[str]]:
    """Our direct heads, and the names of all that was read.

    Args:
        weights: theirs.
        scales: what one unit of their forces and stress means, in eV/Å and eV/Å³.
        hidden: width of the two hidden layers.
        name: the file, for messages.

    Raises:
        UserError: not one head of forces, or a tensor that is missing.
    """
    of_vectors = _only(weights, FORCES, "heads of forces", name)
    used = {of_vectors, of_vectors.replace("weight", "bias")}  # the bias is the scalars'
    gates = scales["forces"] * weights[of_vectors][1, 0].to(torch.float64)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)  # the same file gives the same checkpoint
        begins = mlp([len(gates), hidden, hidden]).double()
    state = {f"direct.forces.{key}": tensor for key, tensor in begins.state_dict().items()}
    state |= {"direct.forces.4.weight": gates.new_zeros(len(gates), hidden), "direct.forces.4.bias": gates}
    state["direct.shift"] = gates.new_zeros(())
    if has_stress(weights):
        of_tensors = _only(weights, STRESS, "heads of stress", name)
        prefix = _only(weights, f"{SCALARS}0.weight", "perceptrons of a pressure", name).removesuffix("0.weight")
        names = [f"{k}.{part}" for k in (0, 2, 4) for part in ("weight", "bias")]
        missing = [prefix + key for key in names if prefix + key not in weights]
        if missing:
            raise UserError(f"{name} has no {missing[0]}, which its options ask for; the file is damaged")
        used |= {of_tensors, of_tensors.replace("weight", "bias"), *(prefix + key for key in names)}
        theirs = {key: weights[prefix + key].to(torch.float64) for key in names}
        state |= {f"direct.stress.{key}": theirs[key] for key in names[:4]}
        scale = scales["stress"]
        gates = scale * OF_DEGREE_2 * weights[of_tensors][2, 0].to(torch.float64)
        none = gates.new_zeros(len(gates), theirs["4.weight"].shape[1])
        state["direct.stress.4.weight"] = torch.cat([scale * OF_UNITY * theirs["4.weight"], none])
        state["direct.stress.4.bias"] = torch.cat([scale * OF_UNITY * theirs["4.bias"], gates])
    return state, used


def scales_of(tasks: Any, heads: Mapping[str, Any], stress: bool, dataset: str, name: str) -> dict[str, float]:
    """Units of forces and, where there is a head for it, stress.

    Raises:
        UserError: no task says them for the data set, labels are shifted, or the stress is a sum over atoms.
    """
    listed = list(tasks.values()) if isinstance(tasks, dict) else tasks
    found = {}
    for kind in ("forces", "stress") if stress else ("forces",):
        said = [task for task in listed if task["property"] == kind and dataset in task["datasets"]]
        if len(said) != 1:
            raise UserError(f"{name} has {len(said)} tasks for the {kind} of '{dataset}'; one was expected")
        normalizer = said[0].get("normalizer") or {}
        if float(normalizer.get("mean", 0.0)) != 0.0:
            raise UserError(f"{name}: {kind} are shifted by {normalizer['mean']}: not represented here")
        found[kind] = float(normalizer.get("rmsd", 1.0))
    for head in heads.values():
        if str(head.get("module", "")).endswith("MLP_Stress_Head") and head.get("reduce", "mean") != "mean":
            raise UserError(f"{name}: reduce of the stress is {head['reduce']}; only mean is represented here")
    return found


def _only(weights: Mapping[str, Tensor], end: str, what: str, name: str) -> str:
    found = [key for key in weights if key.startswith("output_heads.") and key.endswith(end)]
    if len(found) != 1:
        raise UserError(f"{name} predicts forces directly and has {len(found)} {what}; one is represented here")
    return found[0]
