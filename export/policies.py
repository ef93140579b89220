"""What export freezes, converts or refuses so that the file can be trusted in molecular dynamics."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from ase import Atoms
from torch import Tensor, nn

from triforces_deploy.errors import UserError
from triforces_deploy.model import Model
from triforces_deploy.potential import Facts
from triforces_deploy.streams.lattice import LatticeEncoding, lattice_features

from .folding import as_sum, fold_composition, fold_lattice, overlaid, with_affine_sum, without_zbl
from .overlay import switches
from .refit import refit

Lattice = Literal["off", "live", "frozen"]


@dataclasses.dataclass(frozen=True)
class PolicyOptions:
    """What a user decides."""

    composition: str = "live"
    """'live'; 'frozen' to that of ``structure``; or frozen to a table, e.g. 'Si=0.7,Ge=0.3'."""
    structure: Atoms | None = None
    """What 'frozen' means."""
    lattice: Lattice = "off"
    """Of a model that encodes the lattice only 'frozen' to the cell of ``structure`` can be exported."""
    keep_cap: bool = False
    """Export a model that was trained on a capped neighbour list, marked as not smooth."""
    refit: Mapping[str, Atoms] | None = None
    """Structures for fitting a sum over atoms to a model with a nonlinear mean readout."""
    zbl: str | None = None
    """Lay the repulsion over the model at short range: 'auto', or 'INNER,OUTER' in Å; see overlay.py."""


def decide(model: Model, provenance: Mapping[str, Any], options: PolicyOptions) -> tuple[Model, Facts]:
    """The model as it will be deployed, in float64, and what it is.

    Args:
        model: as trained; its precision is changed.
        provenance: of the checkpoint.
        options: the user's.

    Raises:
        UserError: a policy that cannot hold, in one line with the way out.
    """
    refuse_unfit(model)
    _refuse_idle(model, options)
    model.set_network_dtype(torch.float64)
    elements, said = _elements(model, provenance)
    reference, composition = _composition(model, elements, options)
    if reference:
        model = fold_composition(model, reference)
    features, lattice = _lattice(model, options)
    if features:
        model = fold_lattice(model, torch.tensor([features], dtype=torch.float64))
    cap = _cap(model, options)
    model, averaged = _without_average(model)
    model, readout, how = _readout(model, tuple(reference) or elements, options)
    model, short_range = _short_range(model, elements, provenance, options)
    facts = dataclasses.replace(
        model.facts(), elements=elements, reference=reference, lattice=features, readout=readout,
        policies=(composition, cap, said, how, lattice, *averaged, *short_range, *_uncertainty(model, provenance)),
    )  # fmt: skip
    return model, facts


def as_trained(model: Model, facts: Facts, weights: Mapping[str, Tensor]) -> Model:
    """The model of the checkpoint made to answer the question that the artifact answers, with nothing folded.

    Args:
        model: as trained. A frozen composition is left to :class:`~triforces_deploy.potential.Potential`.
        facts: of the artifact.
        weights: of the artifact; a fitted readout exists nowhere else.
    """
    model, _ = _without_average(model)
    if facts.lattice and model.structure is not None and model.structure.lattice is not None:
        model.structure.lattice = _Frozen(model.structure.lattice, facts.lattice)  # type: ignore[assignment]
    if facts.readout == "refitted" and model.config.readout != "sum" and "head.layers.0.weight" in weights:
        head = [weights[f"head.layers.0.{name}"].to(model.head.dtype) for name in ("weight", "bias")]
        model = with_affine_sum(model, *head)
    return overlaid(model, facts.zbl_overlay) if facts.zbl_overlay else model


class _Frozen(nn.Module):
    """A lattice encoding that sees the same features whatever the cell."""

    def __init__(self, encoding: LatticeEncoding, features: Sequence[float]) -> None:
        super().__init__()
        self.encoding, self.features = encoding, features

    def forward(self, cell: Tensor, _n_atoms: Tensor) -> Tensor:
        dtype = next(self.encoding.parameters()).dtype
        encoded: Tensor = self.encoding.layers(torch.tensor([self.features], dtype=torch.float64).to(dtype))
        return encoded.expand(cell.shape[0], -1)


def refuse_unfit(model: Model) -> None:
    """Refuse a model that no policy makes fit for molecular dynamics; UserError."""
    for fact, what in ((model.interaction.conservative, "is not conservative"), (model.interaction.smooth, "is not smooth")):
        if not fact:
            raise UserError(f"the backbone {model.config.backbone.name} {what}; molecular dynamics needs one that is")
    if model.direct is not None:
        raise UserError(
            "this model predicts forces directly (model.direct: true); they are no derivative of its energy, which would drift "
            "in molecular dynamics; fine-tune it with model.direct: false, and export what comes out"
        )
    bad = [name for name, tensor in model.state_dict().items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise UserError(f"the checkpoint holds NaN or infinity in {bad[0]}; its training diverged, take an earlier one")
    model.config.refuse_frozen()
    if model.config.readout == "total":
        raise UserError(
            "readout 'total' is not extensive: the forces in a supercell of n cells come out n times too small; "
            "train with model.readout: sum"
        )


def _refuse_idle(model: Model, options: PolicyOptions) -> None:
    """Refuse options that would change nothing: whoever gives them believes something else of the model."""
    if options.structure is not None and "frozen" not in (options.composition, options.lattice):
        raise UserError("--structure is read only with --composition frozen or --lattice frozen; say which")
    if options.keep_cap and model.config.max_neighbours is None:
        raise UserError("--keep-cap: this model has no neighbour cap; leave the option out")
    if options.refit is not None and (model.config.readout != "mean" or not model.config.head_hidden):
        raise UserError("--refit: the readout of this model is a sum over atoms already, or equal to one; leave the option out")


def _elements(model: Model, provenance: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
    known = model.config.elements
    if "elements" not in provenance:
        return known, f"elements: {', '.join(known)}; the checkpoint does not say which of them its data held"
    seen = tuple(symbol for symbol in known if symbol in provenance["elements"])
    if not seen:
        raise UserError(f"the checkpoint says that its data held none of its elements, {', '.join(known)}; train it anew")
    unseen = [symbol for symbol in known if symbol not in seen]
    left_out = f"; {', '.join(unseen)}: refused, never seen in training" if unseen else ""
    return seen, f"elements: {', '.join(seen)}; any other is refused{left_out}"


def _composition(model: Model, elements: Sequence[str], options: PolicyOptions) -> tuple[dict[str, float], str]:
    """What it is frozen to, nothing where it is not, and the line that says so."""
    if options.composition == "live":
        where = "live, counted over the whole structure at each evaluation"
        return {}, f"composition: {where if model.composition is not None else 'the model has no composition stream'}"
    if model.composition is None:
        raise UserError("--composition frozen: this model has no composition stream, there is nothing to freeze")
    if options.composition != "frozen":
        reference, option = parse_composition(options.composition), "--composition"
    elif options.structure is None or len(options.structure) == 0:
        raise UserError("--composition frozen needs --structure FILE, the structure whose composition is meant")
    else:
        reference, option = dict(Counter(options.structure.get_chemical_symbols())), "--structure"
    strange = sorted(set(reference) - set(elements))
    if strange:
        raise UserError(f"{option} holds {', '.join(strange)}, the model knows {', '.join(elements)} only")
    return reference, "composition: frozen to " + " ".join(f"{k}{v:g}" for k, v in reference.items())


def parse_composition(text: str) -> dict[str, float]:
    """Fractions from 'Si=0.7,Ge=0.3', or from whole numbers such as 'Si=7,Ge=3'; UserError for anything else."""
    amounts: dict[str, float] = {}
    for item in text.split(","):
        symbol, _, number = (part.strip() for part in item.partition("="))
        try:
            amount = float(number)
        except ValueError:
            amount = 0.0
        if not symbol or symbol in amounts or not 0 < amount < math.inf:
            raise UserError(
                f"--composition '{text}': expected live, frozen, or fractions of each element such as Si=0.7,Ge=0.3"
            )
        amounts[symbol] = amount
    total = sum(amounts.values())
    if abs(total - 1.0) > 1e-3 and not all(amount.is_integer() for amount in amounts.values()):
        raise UserError(f"--composition '{text}': the fractions add up to {total:g}; expected 1")
    return {symbol: amount / total for symbol, amount in amounts.items()}


def _lattice(model: Model, options: PolicyOptions) -> tuple[tuple[float, ...], str]:
    """The features that are frozen, none where there is no encoding, and the line that says so."""
    encoded = model.config.structure is not None and model.config.structure.lattice
    if not encoded:
        if options.lattice != "off":
            raise UserError(f"--lattice {options.lattice}: this model has no lattice encoding; leave the option out")
        return (), "lattice encoding: none"
    if options.lattice != "frozen":
        why = {
            "off": "this model was trained with a lattice encoding, without which its energies are others",
            "live": "a live lattice encoding is refused: energies would depend on the box in ways that the stress does not see",
        }[options.lattice]
        raise UserError(
            f"{why}; freeze it with --lattice frozen --structure FILE, or train with model.structure.lattice: false"
        )
    if options.structure is None:
        raise UserError("--lattice frozen needs --structure FILE, the structure whose cell is meant")
    if options.structure.cell.rank < 3 or len(options.structure) == 0:
        raise UserError("--lattice frozen: the structure has no cell with a volume or no atoms; give a periodic one")
    cell = torch.from_numpy(options.structure.cell.array.astype(float))[None]
    (features,) = lattice_features(cell, torch.tensor([float(len(options.structure))], dtype=torch.float64)).tolist()
    shape = " ".join(f"{x:.4g}" for x in options.structure.cell.cellpar())
    return tuple(features), f"lattice encoding: frozen to the cell {shape} (Å, degrees) of {len(options.structure)} atoms"


def _cap(model: Model, options: PolicyOptions) -> str:
    cutoff, most = model.config.cutoff, model.config.max_neighbours
    if most is None:
        return f"graph: every neighbour within {cutoff} Å, no cap"
    if not options.keep_cap:
        raise UserError(
            f"this model was trained on the nearest {most} neighbours only: its energy jumps when one comes or goes; train "
            "with model.max_neighbours: null, or export it with --keep-cap, marked as not smooth, for one rank"
        )
    return f"graph: the nearest {most} neighbours within {cutoff} Å, ties included; NOT SMOOTH, one rank only"


def _readout(model: Model, elements: Sequence[str], options: PolicyOptions) -> tuple[Model, str, str]:
    """The model with a sum over atoms, the fact, and the line that says so."""
    summed = "readout: sum over atoms, accumulated in float64"
    if model.config.readout == "sum":
        return model, "sum", summed
    if not model.config.head_hidden:
        return as_sum(model), "sum", f"{summed}; trained as a mean with an affine head, which is the same"
    if options.refit is None:
        raise UserError(
            "readout 'mean' with a nonlinear head is not separable: atoms would feel the mean of the whole box; fit a sum "
            "over atoms to it with --refit FILE (structures), or train with model.readout: sum"
        )
    model, quality = refit(model, options.refit, elements)
    return model, "refitted", f"{summed}; fitted to a mean readout, {quality}"


def _without_average(model: Model) -> tuple[Model, list[str]]:
    """Without a repulsion that is a mean over all atoms: what is left of it as systems grow."""
    if not (model.config.zbl and model.config.zbl_form == "orb-mean"):
        return model, []
    return without_zbl(model), ["short range: the repulsion of the imported model is a mean over all atoms and is left out"]


def _short_range(
    model: Model, elements: Sequence[str], provenance: Mapping[str, Any], options: PolicyOptions
) -> tuple[Model, list[str]]:
    if options.zbl is None:
        return model, ["short range: ZBL repulsion, trained with"] if model.config.zbl else []
    found, line = switches(options.zbl, model, elements, provenance)
    return overlaid(model, found), [line]


def _uncertainty(model: Model, provenance: Mapping[str, Any]) -> list[str]:
    if not model.config.uncertainty:
        return []
    return [f"uncertainty: of each atom's energy, from the last layer; {provenance.get('uncertainty', 'of unknown origin')}"]


def refuse_backends(facts: Facts, backends: Sequence[str]) -> None:
    """Refuse back ends that make their own neighbour list, where that list would be another than the model's; UserError."""
    if facts.max_neighbours is not None and "onnx-positions" in backends:
        raise UserError("onnx-positions makes its own neighbour list and has no neighbour cap; leave it out of --to")
