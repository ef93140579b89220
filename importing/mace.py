"""Public MACE models as ours: the same numbers, with one of their heads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from ase.data import atomic_numbers, chemical_symbols
from torch import Tensor

from triforces_deploy.config import BackboneConfig, ModelConfig, as_dict
from triforces_deploy.errors import UserError
from triforces_deploy.model import Model
from triforces_deploy.nn import zbl

from .foreign import StandIn, read
from .imported import Imported
from .mace_facts import Facts, facts, silu_scale, tensor
from .mace_table import check_complete, names_read, refuse_leftovers, rows


def import_mace(path: Path, head: str | None, elements: Sequence[str] | None) -> Imported:
    """Convert a model that mace-torch has saved; neither mace-torch nor e3nn is needed, and none of its code runs.

    Args:
        path: the file of the whole model.
        head: which of its heads; None where it has but one.
        elements: only these, in this order: weights of the others are left out. None keeps all.

    Raises:
        UserError: no such file, or what it holds is not represented here.
    """
    name = str(path)
    public = read(path, "a MACE model as mace-torch saves it")
    found = facts(public, name)
    chosen = _head(found, head, name)
    kept = _kept(found, elements, name)
    config = ModelConfig(
        elements=tuple(chemical_symbols[found.numbers[k]] for k in kept),
        cutoff=found.cutoff,
        backbone=BackboneConfig("mace", as_dict(found.config)),
        composition=None,
        structure=None,
        head_hidden=(found.hidden,) if found.hidden else (),
        head_skip=True,
        zbl=found.repulsion,
        zbl_form="mace" if found.repulsion else "universal",
        zbl_power=_power(public, name) if found.repulsion else ModelConfig.zbl_power,
    )
    table = list(rows(found, public, name))
    state = {f"interaction.{row.ours}": row.read(public, name) for row in table}
    for row in table:
        if row.by_element:
            state[f"interaction.{row.ours}"] = state[f"interaction.{row.ours}"][kept].contiguous()
    used = {parameter for row in table for parameter in names_read(row)}
    state |= _readouts(public, found, chosen, name, used) | _energies(public, found, chosen, kept, name)
    refuse_leftovers(public, used, name)
    model = Model(config)
    model.set_network_dtype(torch.float64)
    check_complete(state, model.state_dict())
    model.load_state_dict(state)
    said: dict[str, object] = {"class": public.path, "heads": list(found.heads), "head": found.heads[chosen]}
    return Imported(model.eval().requires_grad_(False), said)


def _head(found: Facts, head: str | None, name: str) -> int:
    if head is None and len(found.heads) == 1:
        return 0
    if head not in found.heads:
        what = "has several heads, choose one" if head is None else f"has no head '{head}'"
        raise UserError(f"{name} {what} with --head: {', '.join(found.heads)}")
    return found.heads.index(head)


def _kept(found: Facts, elements: Sequence[str] | None, name: str) -> list[int]:
    """Places of the wanted elements among theirs."""
    if elements is None:
        return list(range(len(found.numbers)))
    for symbol in elements:
        if atomic_numbers.get(symbol, 0) not in found.numbers:
            known = ", ".join(chemical_symbols[z] for z in found.numbers)
            raise UserError(f"--elements: {name} does not know '{symbol}'; it knows {known}")
    return [found.numbers.index(atomic_numbers[symbol]) for symbol in elements]


def _readouts(public: StandIn, found: Facts, head: int, name: str, used: set[str]) -> dict[str, Tensor]:
    """The head: the linear part reads the scalars of all layers, the perceptron those of the last one only."""
    width, n_layers, n_heads = found.config.channels, len(found.config.correlation), len(found.heads)
    n_readouts = len(public.get("readouts").state["_modules"])
    skip = torch.zeros(1, n_layers * width, dtype=torch.float64)
    for k in range(n_readouts - bool(found.hidden)):
        layer = k if n_readouts == n_layers else n_layers - 1
        parameter = f"readouts.{k}.linear.weight"
        weight = tensor(public, parameter, name).to(torch.float64)[: width * n_heads].reshape(width, n_heads)
        skip[0, layer * width : (layer + 1) * width] = weight[:, head] * width**-0.5
        used.add(parameter)
    state = {"head.skip.weight": skip}
    if not found.hidden:
        zeros = torch.zeros(1, n_layers * width, dtype=torch.float64)
        return state | {"head.layers.0.weight": zeros, "head.layers.0.bias": zeros[:, 0].clone()}
    last = f"readouts.{n_readouts - 1}."
    names = [f"{last}linear_1.weight", f"{last}linear_2.weight"]
    used.update(names)
    inner, outer = (tensor(public, parameter, name).to(torch.float64) for parameter in names)
    n_hidden = found.hidden * n_heads
    mine = slice(head * found.hidden, (head + 1) * found.hidden)
    first = torch.zeros(found.hidden, n_layers * width, dtype=torch.float64)
    first[:, -width:] = inner.reshape(width, n_hidden)[:, mine].T * width**-0.5
    scale = silu_scale(public.get(f"{last}non_linearity.acts.0"), name) * n_hidden**-0.5
    state |= {"head.layers.0.weight": first, "head.layers.0.bias": first.new_zeros(found.hidden)}
    second = outer.reshape(n_hidden, n_heads)[mine, head][None] * scale
    return state | {"head.layers.2.weight": second.contiguous(), "head.layers.2.bias": first.new_zeros(1)}


def _energies(public: StandIn, found: Facts, head: int, kept: list[int], name: str) -> dict[str, Tensor]:
    """References and scale; the shift of each atom is part of the references."""
    energies = torch.atleast_2d(tensor(public, "atomic_energies_fn.atomic_energies", name).to(torch.float64))[head]
    scale, shift = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    if public.name == "ScaleShiftMACE":
        scale, shift = (
            torch.atleast_1d(tensor(public, f"scale_shift.{key}", name).to(torch.float64)) for key in ("scale", "shift")
        )
        scale, shift = (values[head if values.numel() > 1 else 0].clone() for values in (scale, shift))
    references = torch.zeros(119, dtype=torch.float64)
    references[[found.numbers[k] for k in kept]] = energies[kept] + shift
    return {"references": references, "scale": scale}


def _power(public: StandIn, name: str) -> int:
    """Envelope of the repulsion; UserError where its constants are others than those of zbl.MACE."""
    length = 0.529 * float(tensor(public, "pair_repulsion_fn.a_prefactor", name))
    constants = [*tensor(public, "pair_repulsion_fn.c", name).tolist(), length]
    constants.append(float(tensor(public, "pair_repulsion_fn.a_exp", name)))
    expected = [*zbl.MACE.c, zbl.MACE.length, zbl.MACE.power]
    if any(abs(a - b) > 1e-6 * b for a, b in zip(constants, expected, strict=True)):
        raise UserError(f"{name} has a repulsion with constants of its own: not represented")
    return int(tensor(public, "pair_repulsion_fn.p", name))
