"""The one table of a public eSEN model's parameters and ours; both sides are checked to be in it completely."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from triforces_deploy.backbones.esen import ESENConfig
from triforces_deploy.errors import UserError
from triforces_deploy.graph import N_NUMBERS

SIZES = {
    "channels": ("sphere_channels", 128),
    "hidden": ("hidden_channels", 128),
    "edge_channels": ("edge_channels", 128),
    "n_layers": ("num_layers", 2),
    "l_max": ("lmax", 2),
    "m_max": ("mmax", 2),
    "n_gaussians": ("num_distance_basis", 512),
}
"""Our name → theirs, and what theirs is where it is not said."""
REQUIRED = {"norm_type": "rms_norm_sh", "act_type": "gate", "distance_function": "gaussian"}
"""Their options of which one value only is represented here; it is also what they are where they are not said."""
UNSAID: Mapping[str, Any] = {"num_experts": 0, "charge_balanced_channels": [], "spin_balanced_channels": []}
"""Those that must be left out or empty."""
SYSTEMS: Mapping[str, Literal["table", "waves", "linear"]] = {"rand_emb": "table", "pos_emb": "waves", "lin_emb": "linear"}
EMBEDDINGS = {
    "table": [("table.weight", "rand_emb.weight")],
    "waves": [("frequencies", "W")],
    "linear": [("line.weight", "lin_emb.weight"), ("line.bias", "lin_emb.bias")],
}
"""Of charge and spin: our name and theirs."""
CONSTANTS = ("backbone.Jd_", "backbone.wigner_data.")
"""Prefixes of what they keep and we compute."""


def options(said: Mapping[str, Any], dataset: str, spin: int, name: str) -> tuple[ESENConfig, float]:
    """Our options and the cutoff from theirs.

    Raises:
        UserError: an option that is not represented here, by its name.
    """
    if "escn" not in str(said.get("model", "")).lower():
        raise UserError(f"{name}: the backbone is {said.get('model')}; only eSEN in its form eSCN-MD is represented here")
    for key, value in REQUIRED.items():
        if said.get(key, value) != value:
            raise UserError(f"{name}: {key} is {said[key]}; only {value} is represented here")
    for key, value in UNSAID.items():
        if said.get(key) and said[key] != value:
            raise UserError(f"{name}: {key} is {said[key]}: not represented here")
    known = [str(k) for k in said.get("dataset_mapping") or said.get("dataset_list") or ()]
    embedded = said.get("use_dataset_embedding", True)
    if embedded and dataset not in known:
        raise UserError(f"{name}: no embedding of the data set '{dataset}'; it has {', '.join(known)}")
    config = ESENConfig(
        **{ours: int(said.get(theirs, default)) for ours, (theirs, default) in SIZES.items()},
        feed_forward=said.get("ff_type", "grid"),
        grid_resolution=said.get("grid_resolution"),
        system=SYSTEMS[said.get("chg_spin_emb_type", "pos_emb")],
        spin=spin,
        datasets=tuple(known) if embedded else (),
        dataset=dataset if embedded else None,
    )
    config.check()
    return config, float(said.get("cutoff", 5.0))


def readout_prefix(weights: Mapping[str, Tensor], name: str) -> str:
    """Where the perceptron of the energy is among their weights."""
    end = "energy_block.0.weight"
    found = [key.removesuffix("0.weight") for key in weights if key.endswith(end)]
    if len(found) != 1:
        raise UserError(f"{name} has {len(found)} perceptrons of an energy; one is represented here")
    return found[0]


def rows(config: ESENConfig) -> Iterator[tuple[str, str]]:
    """Our name and theirs of every tensor that is the same on both sides."""
    for ours, theirs in {"embedding": "sphere", "of_neighbour": "source", "of_centre": "target"}.items():
        yield f"{ours}.weight", f"{theirs}_embedding.weight"
    for number in ("charge", "spin"):
        for ours, theirs in EMBEDDINGS[config.system]:
            yield f"system.{number}.{ours}", f"{number}_embedding.{theirs}"
    yield from _affine("system.mix", "mix_csd")
    yield from _radial("degree", "edge_degree_embedding.rad_func")
    for k in range(config.n_layers):
        yield from _layer(f"layers.{k}", f"blocks.{k}", config)
    yield from _norm("norm", "norm")


def _layer(ours: str, theirs: str, config: ESENConfig) -> Iterator[tuple[str, str]]:
    yield from _norm(f"{ours}.message_norm", f"{theirs}.norm_1")
    yield from _norm(f"{ours}.atom_norm", f"{theirs}.norm_2")
    yield from _radial(f"{ours}.radial", f"{theirs}.edge_wise.so2_conv_1.rad_func")
    for n, convolution in enumerate(("first", "second"), start=1):
        yield from _affine(f"{ours}.{convolution}.zero", f"{theirs}.edge_wise.so2_conv_{n}.fc_m0")
        for m in range(config.m_max):
            pair = f"{theirs}.edge_wise.so2_conv_{n}.so2_m_conv.{m}.fc.weight"
            yield f"{ours}.{convolution}.pairs.{m}.weight", pair
    forward = f"{ours}.feed_forward", f"{theirs}.atom_wise"
    if config.feed_forward == "grid":
        yield from ((f"{forward[0]}.layers.{k}.weight", f"{forward[1]}.grid_mlp.{k}.weight") for k in (0, 2, 4))
        return
    for here, there in {"gates": "scalar_mlp.0", "inward": "so3_linear_1", "outward": "so3_linear_2"}.items():
        yield from _affine(f"{forward[0]}.{here}", f"{forward[1]}.{there}")


def _affine(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    yield from ((f"{ours}.{part}", f"{theirs}.{part}") for part in ("weight", "bias"))


def _norm(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    yield from ((f"{ours}.{part}", f"{theirs}.affine_{part}") for part in ("weight", "bias"))


def _radial(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    places = {"first": 0, "rest.0": 1, "rest.2": 3, "rest.3": 4, "rest.5": 6}
    for here, there in places.items():
        yield from _affine(f"{ours}.{here}", f"{theirs}.net.{there}")


def converted(
    weights: Mapping[str, Tensor], config: ESENConfig, said: Mapping[str, Any], readout: str, read: set[str], name: str
) -> dict[str, Tensor]:
    """Our weights of the backbone and the energy from theirs, float64; ``read`` names what was read of other heads.

    Raises:
        UserError: a tensor that is missing, or one of theirs that nothing here reads.
    """
    table = {f"interaction.{ours}": f"backbone.{theirs}" for ours, theirs in rows(config)}
    table |= {f"head.layers.{k}.{part}": f"{readout}{k}.{part}" for k in (0, 2, 4) for part in ("weight", "bias")}
    mapping = said.get("dataset_mapping") or {key: key for key in config.datasets}
    datasets = [f"backbone.dataset_embedding.dataset_emb_dict.{mapping[key]}.weight" for key in config.datasets]
    for key in (*table.values(), *datasets):
        if key not in weights:
            raise UserError(f"{name} has no {key}, which its options ask for; the file is damaged")
    state = {ours: weights[theirs].detach().to(torch.float64) for ours, theirs in table.items()}
    if datasets:
        state["interaction.system.datasets.weight"] = torch.cat([weights[key] for key in datasets]).to(torch.float64)
    for ours in ("embedding", "of_neighbour", "of_centre"):
        rows_there = state[f"interaction.{ours}.weight"]
        missing = rows_there.new_zeros(max(N_NUMBERS - len(rows_there), 0), rows_there.shape[1])
        state[f"interaction.{ours}.weight"] = torch.cat([rows_there, missing])
    _refuse_leftovers(weights, {*table.values()} | read, name)
    return state


def _refuse_leftovers(weights: Mapping[str, Tensor], used: set[str], name: str) -> None:
    """UserError for a tensor of theirs that nothing here reads; embeddings of other data sets are not wanted."""
    known = (*CONSTANTS, "backbone.dataset_embedding.")
    for key in weights:
        if key not in used and not key.startswith(known):
            raise UserError(f"{name} has the parameter {key}, which has no counterpart here: not represented")
