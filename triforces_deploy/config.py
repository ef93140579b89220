"""Frozen dataclasses for what a user writes, and the one strict reader that builds them."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from ase.data import atomic_numbers

from triforces_deploy.errors import UserError
from triforces_deploy.files import existing
from triforces_deploy.property_config import PropertyConfig

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class CompositionConfig:
    """Sizes of the composition stream: a transformer over the elements of a structure, weighted by their counts."""

    width: int = 256
    heads: int = 8
    layers: int = 4
    hidden: int = 1024
    table: bool = False
    """One vector per element in place of the transformer: what export makes of a frozen composition. Not for training."""


@dataclasses.dataclass(frozen=True)
class StructureConfig:
    """Sizes of the structure stream: power spectrum of the neighbour density, then invariant message passing."""

    width: int = 256
    hidden: int = 1024
    n_radial: int = 8
    n_channels: int = 8
    l_max: int = 4
    scales: tuple[float, ...] = (0.5, 0.75, 1.0)
    """Envelope radii as fractions of the cutoff; the last must be 1."""
    layers: int = 2
    """Message-passing layers; each costs one exchange."""
    lattice: bool = False
    """Also encode the shape and size of the cell. For molecular dynamics export must freeze it."""


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """The interaction backbone: a name of backbones/table.py and the options of its own ``Config``."""

    name: str = "orb_v3"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ZBLSwitch:
    """Where the repulsion of one pair of elements takes over from the model."""

    first: str
    second: str
    inner: float
    """Å. Below it there is nothing but the repulsion."""
    outer: float
    """Å. Beyond it there is none."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes the shape of a model. ``composition`` or ``structure`` set to null leaves the stream out."""

    elements: tuple[str, ...] = ()
    """Chemical symbols the model may see; any other is refused."""
    cutoff: float = 6.0
    """Å. Shared by every stream."""
    backbone: BackboneConfig = dataclasses.field(default_factory=BackboneConfig)
    composition: CompositionConfig | None = dataclasses.field(default_factory=CompositionConfig)
    structure: StructureConfig | None = dataclasses.field(default_factory=StructureConfig)
    head_hidden: tuple[int, ...] = (128, 128)
    head_skip: bool = False
    """Add a linear function of the features to the perceptron; what the energies of published MACE models are made of."""
    readout: Literal["sum", "mean", "total"] = "sum"
    """What the energy is: 'sum' Σ ε(h_i); 'mean' N·ε(h̄); 'total' ε(h̄) alone. Export makes artifacts of 'sum' only."""
    direct: bool = False
    """Read forces and stress off the features, with heads of the same widths, instead of differentiating the energy: faster,
    not conservative, for pretraining and comparison. Export refuses it."""
    direct_stress: bool = True
    """Whether those heads predict stress too; not so in some imported models, and such are not trained."""
    max_neighbours: int | None = None
    """Keep only so many nearest neighbours of each atom, ties included; no limit is smoother. See neighbour_cap.py."""
    zbl: bool = False
    """Add Ziegler-Biersack-Littmark repulsion at short range."""
    zbl_form: Literal["universal", "mace", "orb", "orb-mean"] = "universal"
    """Constants of the repulsion: the published ones; those of MACE, whose repulsion the model's scale multiplies too; those of
    Orb-v3, of which the conservative models add the mean over the atoms, in place of the sum, to the whole energy."""
    zbl_power: int = 6
    """How flat the envelope of the repulsion starts."""
    zbl_overlay: tuple[ZBLSwitch, ...] = ()
    """Fade the model into that repulsion, one entry for each pair of elements: what ``tfdeploy export --zbl`` makes."""
    uncertainty: bool = False
    """There is a covariance of the last layer: what ``tfdeploy uncertainty`` makes of a trained model."""

    properties: tuple[PropertyConfig, ...] = ()
    """What to fit in place of energies and forces; a model with properties has no energy that means anything."""

    def numbers(self) -> list[int]:
        """Atomic numbers of ``elements``; UserError for an unknown symbol."""
        for symbol in self.elements:
            if atomic_numbers.get(symbol, 0) == 0:
                raise UserError(f"elements: '{symbol}' is no chemical symbol{_suggest(symbol, atomic_numbers)}")
        return [atomic_numbers[s] for s in self.elements]

    def is_sum(self) -> bool:
        """Whether the energy is a sum over atoms that feel only what is near."""
        return self.readout == "sum" and not (self.zbl and self.zbl_form == "orb-mean")

    def refuse_frozen(self) -> None:
        """UserError where training would meet what only export makes."""
        if self.composition is not None and self.composition.table:
            raise UserError(
                "model.composition.table is made by `tfdeploy export`; leave it out to train the composition stream"
            )
        if self.direct and not self.direct_stress:
            raise UserError(
                "model.direct_stress: false is for imported models; leave it out, or train with model.direct: false"
            )
        if self.zbl_overlay:
            raise UserError(
                "model.zbl_overlay is made by `tfdeploy export --zbl`; to train with the repulsion set model.zbl: true"
            )


def read(cls: type[T], data: object, where: str) -> T:
    """Build a dataclass from what YAML or JSON gave, refusing whatever does not fit.

    Args:
        cls: a dataclass; its fields may be dataclasses, tuples, optional or plain types.
        data: the mapping.
        where: how messages name the place, e.g. ``recipe.yaml: model``.

    Raises:
        UserError: an unknown key (with the nearest known one), a missing key, or a value of the wrong type.
    """
    if not isinstance(data, Mapping):
        raise UserError(f"{where}: expected a mapping of keys, got {_kind(data)}")
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls))}
    for key in data:
        if key not in fields:
            raise UserError(f"{where}: unknown key '{key}'{_suggest(str(key), fields)}")
    hints = typing.get_type_hints(cls)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in data:
            raise UserError(f"{where}: missing key '{name}'")
    return cls(**{str(k): _convert(hints[str(k)], v, f"{where}.{k}") for k, v in data.items()})


def as_dict(config: object) -> dict[str, Any]:
    """The plain mapping that :func:`read` turns back into the same dataclass; tuples become lists."""
    plain: dict[str, Any] = dataclasses.asdict(typing.cast(Any, config), dict_factory=lambda kv: {k: _plain(v) for k, v in kv})
    return plain


def _plain(value: object) -> object:
    if isinstance(value, dict):  # options of a backbone, which no type describes
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


def _convert(hint: Any, value: object, where: str) -> Any:
    """Check ``value`` against a type hint and turn lists into tuples and mappings into dataclasses."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = [a for a in typing.get_args(hint) if a is not type(None)]
        if value is None and len(options) < len(typing.get_args(hint)):
            return None
        return _convert(options[0], value, where)
    if dataclasses.is_dataclass(hint):
        return read(typing.cast(type, hint), value, where)
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            allowed = ", ".join(map(str, typing.get_args(hint)))
            raise UserError(f"{where}: expected one of {allowed}; got {value!r}{_suggest(str(value), typing.get_args(hint))}")
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise UserError(f"{where}: expected a list, got {_kind(value)}")
        return tuple(_convert(typing.get_args(hint)[0], v, f"{where}[{k}]") for k, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise UserError(f"{where}: expected a mapping, got {_kind(value)}")
        return dict(value)
    return _plain_type(hint, value, where)


def _plain_type(hint: type, value: object, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            pass
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{where}: expected {hint.__name__}, got {_kind(value)} {value!r}")
    return value


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__


def _suggest(word: str, known: typing.Iterable[object]) -> str:
    names = [str(k) for k in known]
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(names)}" if len(names) < 30 else ""


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; UserError when there is none or a key stands twice."""
    import yaml

    class Strict(yaml.SafeLoader):  # type: ignore[misc]
        """Refuses a repeated key, of which YAML itself would silently keep the last."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key.value for key, _ in node.value]
            twice = next((key for k, key in enumerate(keys) if key in keys[:k]), None)
            if twice is not None:
                raise UserError(f"{path}: key '{twice}' stands twice, again in line {node.start_mark.line + 1} or below")
            return super().construct_mapping(node, deep)

    try:
        data = yaml.load(existing(path, "a YAML recipe").read_text(), Strict)
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path} is not valid YAML{line}; see the recipes that come with the package") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not text in YAML; see the recipes that come with the package") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a mapping of keys, got {_kind(data)}")
    return data
