"""Public Orb-v3 models as ours: the same numbers, conservative or direct.

Their files hold weights alone. What they do not say is what the public code adds to each of them: a cutoff of 6 Å, a
repulsion, and the number of nearest neighbours that the graph keeps, which only the file's name tells. Where a model is told
charge and spin, they become part of it: 0 and 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from ase.data import chemical_symbols
from torch import Tensor

from triforces_deploy.config import BackboneConfig, ModelConfig, as_dict
from triforces_deploy.errors import UserError
from triforces_deploy.graph import N_NUMBERS
from triforces_deploy.model import Model

from .foreign import read_weights
from .imported import Imported
from .orb_table import CUTOFF, REFERENCES, WHAT, converted, head_hidden, sizes

FEW = ("-20-", 20)
"""What the names of files have whose models were trained on so many nearest neighbours. The public code cuts at 120 for all
others, which it calls unlimited; here nothing is cut."""


def import_orb(path: Path, head: str | None, elements: Sequence[str] | None) -> Imported:
    """Convert the weights of an Orb-v3 model; orb-models is not needed.

    Args:
        path: the file.
        head: None; there is but one.
        elements: only these, in this order. None keeps all that have a reference energy.

    Raises:
        UserError: no such file, or what it holds is not represented here.
    """
    name = str(path)
    if head is not None:
        raise UserError(f"--head {head}: Orb-v3 models have one head; leave the option out")
    weights = read_weights(path, WHAT)
    config, hidden = sizes(weights, name), head_hidden(weights)
    direct = "grad_forces_normalizer.bn.running_var" not in weights  # which every conservative one has
    if direct and "heads.forces.mlp.NN-0.weight" not in weights:
        raise UserError(f"{name} is neither conservative nor has it a head of forces; expected {WHAT}")
    read_off = tuple(kind for kind in ("forces", "stress") if direct and f"heads.{kind}.mlp.NN-0.weight" in weights)
    state = converted(weights, config, len(hidden), read_off, name)
    state |= _energies(weights, name)
    for kind in read_off:
        state |= _direct(kind, weights, state, len(hidden), name)
    model_config = ModelConfig(
        elements=_elements(weights[REFERENCES], elements, name),
        cutoff=CUTOFF,
        backbone=BackboneConfig("orb_v3", as_dict(config)),
        composition=None,
        structure=None,
        head_hidden=hidden,
        readout="mean",
        direct=direct,
        direct_stress=not direct or "stress" in read_off,
        max_neighbours=FEW[1] if FEW[0] in path.name else None,
        zbl=True,
        zbl_form="orb" if direct else "orb-mean",
    )
    model = Model(model_config)
    model.set_network_dtype(torch.float64)
    expected = {key: tensor.shape for key, tensor in model.state_dict().items()}
    for key, shape in expected.items():
        if state[key].shape != shape:
            raise UserError(f"{name}: {key} does not fit the sizes of the model; the file is damaged")
    model.load_state_dict(state)
    said: dict[str, object] = {"class": f"Orb-v3 {'direct' if direct else 'conservative'}"}
    if config.system != "none":
        said |= {"charge": config.charge, "spin": config.spin}
    return Imported(model.eval().requires_grad_(False), said)


def _energies(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """References and scale, E = N (σ ε(h̄) + μ) + Σ E0[Z_i]; μ is the same for all elements and becomes part of E0."""
    mean, deviation = _normaliser(weights, "heads.energy.normalizer", name)
    references = torch.zeros(N_NUMBERS, dtype=torch.float64)
    given = _tensor(weights, REFERENCES, name).flatten()
    references[: len(given)] = given + mean
    return {"references": references, "scale": deviation}


def _direct(
    kind: str, weights: Mapping[str, Tensor], state: Mapping[str, Tensor], n_hidden: int, name: str
) -> dict[str, Tensor]:
    """The last layer of a direct head in eV, Å; its normaliser becomes part of it, but for the mean of forces."""
    last = f"direct.{kind}.{2 * n_hidden}."
    weight, bias = state[f"{last}weight"], state[f"{last}bias"]
    if kind == "forces":
        shift, spread = _normaliser(weights, "heads.forces.normalizer", name)
        return {f"{last}weight": weight * spread, f"{last}bias": bias * spread, "direct.shift": shift}
    parts = [_normaliser(weights, f"heads.stress.{part}_normalizer", name) for part in ("diag", "offdiag")]
    means, spreads = (torch.stack([part[k] for part in parts for _ in range(3)]) for k in (0, 1))
    return {f"{last}weight": weight * spreads[:, None], f"{last}bias": bias * spreads + means}


def _normaliser(weights: Mapping[str, Tensor], prefix: str, name: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, () each."""
    mean, variance = (_tensor(weights, f"{prefix}.bn.running_{part}", name) for part in ("mean", "var"))
    if mean.numel() != 1 or variance.numel() != 1 or not float(variance) > 0:
        raise UserError(f"{name}: {prefix} is no mean and positive variance; the file is damaged")
    return mean.reshape(()), variance.reshape(()).sqrt()


def _tensor(weights: Mapping[str, Tensor], key: str, name: str) -> Tensor:
    if key not in weights:
        raise UserError(f"{name} has no {key}; expected {WHAT}")
    return weights[key].to(torch.float64)


def _elements(references: Tensor, elements: Sequence[str] | None, name: str) -> tuple[str, ...]:
    known = [chemical_symbols[z] for z in references.flatten().nonzero().flatten().tolist() if z > 0]
    for symbol in elements or ():
        if symbol not in known:
            raise UserError(f"--elements: {name} has no reference energy of '{symbol}'; it has {', '.join(known)}")
    return tuple(elements or known)
