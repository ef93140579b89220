"""The one table of a public Orb-v3 model's parameters and ours; both sides are checked to be in it completely."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from triforces_deploy.backbones.orb_v3 import OrbV3Config
from triforces_deploy.errors import UserError

UNUSED = ("model._decoder.", "model.rbf_transform.", "heads.confidence.", "grad_forces_normalizer.", "grad_stress_normalizer.")
"""Prefixes of theirs that no energy, force or stress depends on, or that we compute."""
CUTOFF = 6.0
"""Å. A constant of the public code, not an option."""
REFERENCES = "heads.energy.reference.linear.weight"
WHAT = "the weights of an Orb-v3 model, as orb-models publishes them"


def sizes(weights: Mapping[str, Tensor], name: str) -> OrbV3Config:
    """Our options, read off the shapes of theirs.

    Raises:
        UserError: another architecture, by what shows it.
    """
    if any(key.startswith("node_head.") or key.endswith("layer_norm.bias") for key in weights):
        raise UserError(f"{name} is an Orb-v2 model, which predicts forces directly: not represented, Orb-v3 is")
    waves, embedding = ("model.rbf_transform.bessel_weights", "model.atom_emb.embeddings.weight")
    for key in (waves, embedding, "model._encoder._edge_fn.mlp.NN-0.weight", "heads.energy.mlp.NN-0.weight"):
        if key not in weights:
            raise UserError(f"{name} has no {key}; expected {WHAT}")
    n_bessel, latent = weights[waves].numel(), weights[embedding].shape[1]
    exact = torch.arange(1, n_bessel + 1) * torch.pi / CUTOFF
    if not torch.allclose(weights[waves].float(), exact.float(), rtol=1e-5):
        raise UserError(f"{name} has radial functions with other wave numbers than kπ / {CUTOFF:g} Å: not represented")
    hidden, n_inputs = weights["model._encoder._edge_fn.mlp.NN-0.weight"].shape
    told = "model.conditioner.charge_embedding.W" in weights
    config = OrbV3Config(
        latent=latent,
        n_layers=_count(weights, "model.gnn_stacks.{}._receive_attn.weight"),
        mlp_hidden=hidden,
        mlp_depth=_count(weights, "model._encoder._edge_fn.mlp.NN-{}.weight") - 1,
        n_bessel=n_bessel,
        l_max=round((n_inputs / n_bessel) ** 0.5) - 1,
        system="waves" if told else "none",
        spin=1 if told else 0,
    )
    config.check()
    return config


def head_hidden(weights: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Widths of the hidden layers of the energy's perceptron."""
    pattern = "heads.energy.mlp.NN-{}.weight"
    return tuple(weights[pattern.format(k)].shape[0] for k in range(_count(weights, pattern) - 1))


def rows(config: OrbV3Config, n_hidden: int, read_off: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Our name of every tensor and their name; where there are two of theirs, ours is the one on top of the other."""
    yield "interaction.embedding.weight", ("model.atom_emb.embeddings.weight",)
    depth = config.mlp_depth + 1
    for ours, theirs in {"node_encoder": "_node_fn", "edge_encoder": "_edge_fn"}.items():
        yield from _normed(f"interaction.{ours}", f"model._encoder.{theirs}", depth)
    for k in range(config.n_layers):
        ours, theirs = f"interaction.layers.{k}", f"model.gnn_stacks.{k}"
        for part in ("weight", "bias"):
            yield f"{ours}.gates.{part}", (f"{theirs}._receive_attn.{part}", f"{theirs}._send_attn.{part}")
            if config.system == "waves":
                yield f"interaction.system.layers.{k}.{part}", (f"{theirs}._cond_node_proj.{part}",)
        yield from _normed(f"{ours}.edge_mlp", f"{theirs}._edge_mlp", depth)
        yield from _normed(f"{ours}.node_mlp", f"{theirs}._node_mlp", depth)
    if config.system == "waves":
        for number in ("charge", "spin"):
            yield f"interaction.system.{number}.frequencies", (f"model.conditioner.{number}_embedding.W",)
    yield from _perceptron("head.layers", "heads.energy.mlp", n_hidden + 1)
    for kind in read_off:
        yield from _perceptron(f"direct.{kind}", f"heads.{kind}.mlp", n_hidden + 1)


def converted(
    weights: Mapping[str, Tensor], config: OrbV3Config, n_hidden: int, read_off: Sequence[str], name: str
) -> dict[str, Tensor]:
    """Our weights from theirs, float64, as they are; scales and references are put to them in orb.py.

    Args:
        weights: theirs.
        config: of the trunk.
        n_hidden: hidden layers of every head.
        read_off: what has a direct head.
        name: of the file, for messages.

    Raises:
        UserError: a tensor that is missing, or one of theirs that nothing here reads.
    """
    table = dict(rows(config, n_hidden, read_off))
    used = {key for theirs in table.values() for key in theirs}
    for key in sorted(used):
        if key not in weights:
            raise UserError(f"{name} has no {key}, which its other parts ask for; the file is damaged")
    for key in weights:
        if key not in used and not key.startswith(UNUSED) and "normalizer.bn." not in key and key != REFERENCES:
            raise UserError(f"{name} has the parameter {key}, which has no counterpart here: not represented")
    return {ours: torch.cat([weights[key].to(torch.float64) for key in theirs]) for ours, theirs in table.items()}


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    count = 0
    while pattern.format(count) in weights:
        count += 1
    return count


def _normed(ours: str, theirs: str, depth: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield from _perceptron(f"{ours}.mlp", f"{theirs}.mlp", depth)
    yield f"{ours}.norm.weight", (f"{theirs}.layer_norm.weight",)


def _perceptron(ours: str, theirs: str, depth: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Linear maps are every second module of ours, and numbered by themselves in theirs."""
    for k in range(depth):
        yield from ((f"{ours}.{2 * k}.{part}", (f"{theirs}.NN-{k}.{part}",)) for part in ("weight", "bias"))
