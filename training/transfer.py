"""Starting from another checkpoint: which parts are taken over, which learn, from when on and how fast.

The parts of a model are its 'streams' (composition and structure), its 'backbone' and its 'heads'. A strategy is a name for
what is taken over and what then learns:

==================  ===========================  ======================
``strategy``        taken over                   learns
==================  ===========================  ======================
'full'              everything                   everything
'head-only'         everything                   heads
'full-transfer'     streams, backbone            everything, a new head
'head-transfer'     streams, backbone            a new head
==================  ===========================  ======================
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from triforces_deploy import checkpoint, derivatives
from triforces_deploy.config import as_dict
from triforces_deploy.errors import UserError
from triforces_deploy.files import existing, sha256_of
from triforces_deploy.model import Model
from triforces_deploy.property_config import PropertyConfig
from triforces_deploy.training.structures import Sample

PartName = Literal["streams", "backbone", "heads"]
PARTS: tuple[PartName, ...] = ("streams", "backbone", "heads")

WHAT = "a checkpoint to start from (init.checkpoint)"

STRATEGIES: dict[str, tuple[tuple[PartName, ...], tuple[PartName, ...]]] = {
    "full": (PARTS, ()),
    "head-only": (PARTS, ("streams", "backbone")),
    "full-transfer": (("streams", "backbone"), ()),
    "head-transfer": (("streams", "backbone"), ("streams", "backbone")),
}
"""Name → parts taken over, parts that never learn."""


@dataclasses.dataclass(frozen=True)
class ReplayConfig:
    """Old structures in every batch, so that a model does not forget them while it learns new ones."""

    files: tuple[str, ...] = ()
    """As ``data.files``; all of their structures are trained on, none is held out."""
    share: float = 0.2
    """Of each batch, in ``trainer.batch_by``; at least one structure."""


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Where weights come from, if not from chance alone; see :mod:`triforces_deploy.training.transfer`."""

    checkpoint: str = ""
    """Written by `tfdeploy train` or `tfdeploy import`. Empty: everything starts at random."""
    strategy: Literal["full", "head-only", "full-transfer", "head-transfer"] | None = None
    """None: 'full' from a checkpoint that was fitted to what this one is fitted to, 'full-transfer' from any other."""
    parts: tuple[PartName, ...] | None = None
    """What is taken over, in place of what the strategy says; [backbone] grows streams around it."""
    frozen: tuple[PartName, ...] | None = None
    """What never learns, in place of what the strategy says."""
    thaw: dict[str, int] = dataclasses.field(default_factory=dict)
    """Part → step from which it learns; before it stands still."""
    rates: dict[str, float] = dataclasses.field(default_factory=dict)
    """Part → factor of the learning rate."""
    layer_decay: float = 1.0
    """Factor of the learning rate for each layer of the backbone further from the head; its embeddings are the last."""
    replay: ReplayConfig | None = None
    """Structures of another data set, such as what the checkpoint was trained on, mixed into the batches."""

    def taken(self) -> tuple[PartName, ...]:
        """The parts that come from the checkpoint."""
        return () if not self.checkpoint else self._strategy()[0] if self.parts is None else self.parts

    def still(self) -> tuple[PartName, ...]:
        """The parts that never learn."""
        if self.frozen is not None:
            return self.frozen
        return self._strategy()[1] if self.checkpoint else ()

    def _strategy(self) -> tuple[tuple[PartName, ...], tuple[PartName, ...]]:
        assert self.strategy is not None  # see settled
        return STRATEGIES[self.strategy]

    def check(self, where: str) -> None:
        """UserError for values that make no sense."""
        for name in ("thaw", "rates"):
            values: dict[str, Any] = getattr(self, name)
            for part, value in values.items():
                if part not in PARTS:
                    raise UserError(f"{where}.{name}: unknown part '{part}'; known: {', '.join(PARTS)}")
                if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                    raise UserError(f"{where}.{name}.{part}: expected a number, 0 or more, got {value!r}")
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"{where}.layer_decay: expected a number above 0 and up to 1, got {self.layer_decay}")
        if self.frozen is not None and set(self.frozen) == set(PARTS):
            raise UserError(f"{where}.frozen: all parts stand still; leave one out")
        if self.replay is not None and not (self.replay.files and 0 < self.replay.share < 1):
            raise UserError(f"{where}.replay: expected files, and a share of each batch between 0 and 1, such as 0.2")


def part_of(name: str) -> PartName:
    """Which part a parameter of a learner or of a model belongs to, by its name; heads of an objective are 'heads'."""
    first, _, rest = name.partition(".")
    stem = rest.partition(".")[0] if first == "model" else first
    return "backbone" if stem == "interaction" else "streams" if stem in ("composition", "structure") else "heads"


def settled(config: InitConfig, properties: Sequence[PropertyConfig] | None) -> InitConfig:
    """With a strategy, chosen by what the checkpoint was fitted to where none is given.

    Args:
        config: of a recipe.
        properties: what its model is fitted to in place of energies; None where it is pretrained.
    """
    if config.strategy is not None or not config.checkpoint:
        return config
    model, provenance = checkpoint.load(existing(Path(config.checkpoint), WHAT))
    if properties is None or "pretrained" in provenance:
        return dataclasses.replace(config, strategy="full-transfer")
    energies = not properties and checkpoint.fits_energies(provenance)
    same = energies or model.config.properties == tuple(properties)
    return dataclasses.replace(config, strategy="full" if same else "full-transfer")


def model_of(config: InitConfig, said: object, where: str) -> dict[str, Any]:
    """The keys of a recipe's model, those of the checkpoint where it says nothing.

    Args:
        config: with a checkpoint.
        said: the recipe's section ``model``.
        where: how messages name that.

    Raises:
        UserError: no such checkpoint, or a section that is no mapping.
    """
    if not isinstance(said, dict):
        raise UserError(f"{where}: expected a mapping of keys, got {type(said).__name__}")
    found = checkpoint.load(existing(Path(config.checkpoint), WHAT))[0].config
    # Both are made of a trained model by later commands and would not be true of this one.
    trained = dataclasses.replace(found, uncertainty=False, zbl_overlay=())
    return {**as_dict(trained), **said}


def take_over(model: Model, config: InitConfig) -> dict[str, Any]:
    """Replace weights of the model by those of the checkpoint; what of it a provenance should say.

    With the heads come the element references and the scale; references are for the caller to adjust to new labels. Heads that
    read streams which the checkpoint has not start with zeros for them: the model is then the checkpoint's own at first.

    Raises:
        UserError: no such file, or a part of another shape than the recipe's model.
    """
    if not config.checkpoint:
        return {}
    path = existing(Path(config.checkpoint), WHAT)
    found, _ = checkpoint.load(path)
    taken = config.taken()
    theirs = _widened(found, model)
    _refuse_misfits(model, found, theirs, taken, path)
    kept = {name: t for name, t in model.state_dict().items() if name == "spread" or part_of(name) not in taken}
    merged = {name: theirs[name].to(t) if name not in kept else t for name, t in model.state_dict().items()}
    model.load_state_dict(merged)
    return {"init": {"checkpoint": str(path), "sha256": sha256_of(path), "parts": list(taken)}}


def _widened(found: Model, model: Model) -> dict[str, Tensor]:
    """Weights of the checkpoint, with zeros where the heads read streams that only the other model has."""
    state, widths, read = model.state_dict(), model.stream_widths(), found.stream_widths()
    new = [name for name in widths if name not in read]
    if not new or any(widths.get(name) != width for name, width in read.items()):
        return found.state_dict()
    places = torch.cat([torch.full((width,), name not in new) for name, width in widths.items()])
    out: dict[str, Tensor] = {}
    for name, tensor in found.state_dict().items():
        ours = state.get(name, tensor)
        if part_of(name) == "heads" and tensor.ndim == 2 and ours.shape == (len(tensor), len(places)) != tensor.shape:
            out[name] = tensor.new_zeros(ours.shape)
            out[name][:, places] = tensor
        else:
            out[name] = tensor
    return out


def _refuse_misfits(model: Model, found: Model, theirs: dict[str, Tensor], taken: tuple[PartName, ...], path: Path) -> None:
    plan, said = as_dict(model.config), as_dict(found.config)
    keys = {
        "backbone": ("backbone", "cutoff"),
        "streams": ("composition", "structure", "cutoff"),
        "heads": ("readout", "head_skip"),
    }
    for part in taken:
        for key in keys[part]:
            if plan[key] != said[key]:
                raise UserError(
                    f"init: model.{key} of the recipe is {plan[key]}, that of {path} is {said[key]}; make them equal, or "
                    f"leave '{part}' out of init.parts"
                )
    for name, tensor in model.state_dict().items():
        if part_of(name) in taken and name != "spread" and (name not in theirs or theirs[name].shape != tensor.shape):
            raise UserError(
                f"init: '{name}' does not fit between the recipe's model and {path}; make model.elements, "
                f"model.head_hidden and model.properties equal, or leave '{part_of(name)}' out of init.parts"
            )


def hold_still(learner: nn.Module, config: InitConfig, step: int) -> None:
    """Let parameters learn, or not, at a step; those of a model's zbl or tables never did."""
    still = {part for part in PARTS if part in config.still() or step < config.thaw.get(part, 0)}
    if config.still() or config.thaw:
        for name, parameter in learner.named_parameters():
            parameter.requires_grad_(part_of(name) not in still)


def groups(learner: nn.Module, config: InitConfig, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser, each with its ``rate``, a factor of the learning rate.

    Parts that are to thaw are in them from the start: without a gradient an optimiser leaves them alone.
    """
    depth = 1 + max([_layer(name) for name, _ in learner.named_parameters()], default=-1)
    found: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in learner.named_parameters():
        part = part_of(name)
        learns = parameter.requires_grad or config.thaw.get(part, 0) > 0
        if part in config.still() or not learns:
            continue
        rate = config.rates.get(part, 1.0)
        if part == "backbone":
            rate *= config.layer_decay ** (depth - _layer(name))
        decay = weight_decay if parameter.ndim > 1 else 0.0
        found.setdefault((rate, decay), []).append(parameter)
    if not found:
        raise UserError("init: nothing is left to learn; freeze less")
    order = sorted(found, key=lambda key: (-key[0], -key[1]))
    return [{"params": found[key], "rate": key[0], "weight_decay": key[1]} for key in order]


def _layer(name: str) -> int:
    """Which layer of the backbone a parameter belongs to, from 0; −1 for what comes before them, and for other parts."""
    match = re.search(r"\binteraction\.layers\.(\d+)\.", name)
    return int(match.group(1)) if match else -1


def adjust_references(model: Model, samples: Iterable[Sample]) -> None:
    """Move the references of the elements so that a model with a head of its own fits the energies of new labels best."""
    model.references += zero_of(model, samples)


@torch.no_grad()
def zero_of(model: Model, samples: Iterable[Sample]) -> Tensor:
    """How far labels lie above a model, (119,) float64, eV for an atom of each element.

    Two sets of labels differ by their zeros of energy, which no network need learn: least squares of what is left of the
    energy per atom on the fractions of the elements, the smallest change where these do not tell them apart.
    """
    fractions, left = [], []
    for sample in samples:
        graph = sample.graph
        known = sample.energy.isfinite()
        n_atoms = graph.composition.sum(dim=1)
        error = sample.energy - derivatives.energy(model(graph), graph)
        fractions.append((graph.composition / n_atoms[:, None])[known])
        left.append((error / n_atoms)[known])
    if not fractions or len(torch.cat(left)) == 0:
        return torch.zeros_like(model.references)
    found: Tensor = torch.linalg.lstsq(torch.cat(fractions), torch.cat(left)[:, None], rcond=1e-10, driver="gelsd").solution
    return found[:, 0]
