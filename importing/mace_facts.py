"""What a public MACE model is, and what of it has no counterpart here."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from triforces_deploy.backbones.mace import Interaction, MACEConfig
from triforces_deploy.errors import UserError

from .foreign import StandIn

MODELS = ("MACE", "ScaleShiftMACE")
INTERACTIONS: dict[str, Interaction] = {
    "RealAgnosticInteractionBlock": "plain",
    "RealAgnosticResidualInteractionBlock": "residual",
    "RealAgnosticDensityInteractionBlock": "density",
    "RealAgnosticDensityResidualInteractionBlock": "density-residual",
}
READOUTS = ("LinearReadoutBlock", "NonLinearReadoutBlock")
SILU = "silu"


@dataclasses.dataclass(frozen=True)
class Facts:
    """Of a public model, read off its modules and the shapes of its tensors."""

    config: MACEConfig
    cutoff: float
    numbers: tuple[int, ...]
    heads: tuple[str, ...]
    neighbours: tuple[float, ...]
    """By which each layer divides its sums; 1 where it divides by a density."""
    hidden: int
    """Of the last readout, for each head; 0 where all readouts are linear."""
    repulsion: bool


def facts(model: StandIn, name: str) -> Facts:
    """Look at a model; UserError, naming it, for anything that is not MACE as backbones/mace.py has it."""
    _refuse_others(model, name)
    layers = [model.get(f"interactions.{k}") for k in range(int(tensor(model, "num_interactions", name)))]
    kinds = [_known(layer, INTERACTIONS, "interaction", name) for layer in layers]
    if len(set(kinds[1:])) > 1:
        raise UserError(f"{name} has interactions of several kinds behind the first layer, {', '.join(kinds)}: not represented")
    numbers = tuple(int(z) for z in tensor(model, "atomic_numbers", name))
    radial = [layer.get("conv_tp_weights").state["_modules"] for layer in layers]
    sizes = [[int(module.get("weight").shape[1]) for module in modules.values()][:-1] for modules in radial]
    hidden = _irreps(model.get("products.0.linear").get("irreps_out"), name)
    heads = tuple(model.get("heads") or ("Default",))
    readouts = [_known(r, dict.fromkeys(READOUTS, 0), "readout", name, r.name) for r in _modules(model, "readouts")]
    config = MACEConfig(
        channels=tensor(model, "node_embedding.linear.weight", name).numel() // len(numbers),
        l_hidden=len(hidden) - 1,
        l_max=int(model.get("spherical_harmonics").get("_lmax")),
        correlation=tuple(_order(model.get(f"products.{k}"), name) for k in range(len(layers))),
        first=INTERACTIONS[kinds[0]],
        later=INTERACTIONS[kinds[-1]] if len(kinds) > 1 else "residual",
        n_bessel=tensor(model, "radial_embedding.bessel_fn.bessel_weights", name).numel(),
        envelope_power=int(tensor(model, "radial_embedding.cutoff_fn.p", name)),
        radial_hidden=tuple(sizes[0]),
        agnesi=model.get("radial_embedding.distance_transform") is not None,
    )
    if any(mul != config.channels for mul in hidden) or any(s != sizes[0] for s in sizes):
        raise UserError(f"{name} has other numbers of channels in some features or layers: not represented")
    nonlinear = readouts[-1] == "NonLinearReadoutBlock"
    width = tensor(model, f"readouts.{len(readouts) - 1}.linear_1.weight", name).numel() if nonlinear else 0
    return Facts(
        config=config,
        cutoff=float(tensor(model, "r_max", name)),
        numbers=numbers,
        heads=heads,
        neighbours=tuple(
            1.0
            if kind.startswith("RealAgnosticDensity")
            else _number(layer.get("avg_num_neighbors"), "avg_num_neighbors", name)
            for kind, layer in zip(kinds, layers, strict=True)
        ),
        hidden=width // (config.channels * len(heads)),
        repulsion=model.get("pair_repulsion_fn") is not None,
    )


def tensor(model: StandIn, path: str, name: str) -> Tensor:
    """A parameter or buffer; UserError where the model has none of this name."""
    found = model.get(path)
    if not isinstance(found, Tensor):
        raise UserError(f"{name} has no {path}; expected a MACE model as mace-torch saves it")
    return found.detach()


def silu_scale(module: StandIn, name: str) -> float:
    """By what an activation is multiplied behind SiLU; UserError where it is another function."""
    function = module.get("f")
    # A function that is not here is the stand-in class itself.
    path = function.path if isinstance(function, type) and issubclass(function, StandIn) else str(function)
    if path.rpartition(".")[2] != SILU:
        raise UserError(f"{name} has the activation {path or 'None'}: not represented, SiLU alone is")
    return 1.0 if module.get("_is_id") else float(module.get("cst"))


def _refuse_others(model: StandIn, name: str) -> None:
    if not model.path.startswith("mace.") or model.name not in MODELS:
        raise UserError(f"{name} is a {model.path}; expected one of {', '.join(MODELS)} of mace-torch")
    radial = model.get("radial_embedding")
    transform = radial.get("distance_transform")
    wrong = {
        "radial functions of the kind " + radial.get("bessel_fn").name: radial.get("bessel_fn").name != "BesselBasis",
        f"the distance transform {transform.name if transform else ''}": transform and transform.name != "AgnesiTransform",
        "a cutoff on the weights instead of the radial functions (apply_cutoff=False)": model.get("apply_cutoff", True)
        is False,
        "harmonics without parity (use_so3)": model.get("use_so3", False),
        "products that do not know the element (use_agnostic_product)": model.get("use_agnostic_product", False),
        "other features on the edges (edge_irreps)": model.get("edge_irreps") is not None,
        "embeddings of charge, spin or the like (embedding_specs)": model.get("joint_embedding") is not None,
        "cuEquivariance weights; convert it with mace_cueq_to_e3nn first": _accelerated(model),
    }
    for what, there in wrong.items():
        if there:
            raise UserError(f"{name} has {what}: not represented")


def _accelerated(model: StandIn) -> bool:
    config = model.get("products.0").get("cueq_config")
    return isinstance(config, StandIn) and bool(config.get("enabled"))


def _modules(model: StandIn, group: str) -> list[StandIn]:
    return list(model.get(group).state["_modules"].values())


def _known(module: StandIn, known: dict[str, Any], what: str, name: str, kind: str = "") -> str:
    kind = kind or module.name
    if kind not in known:
        raise UserError(f"{name} has the {what} {kind}: not represented, known are {', '.join(known)}")
    return kind


def _order(product: StandIn, name: str) -> int:
    orders = {len(c.get("weights").state["_parameters"]) + 1 for c in _modules(product, "symmetric_contractions.contractions")}
    if len(orders) != 1:
        raise UserError(f"{name} has several orders of correlation in one layer: not represented")
    return orders.pop()


def _irreps(irreps: StandIn, name: str) -> list[int]:
    """Channels of degree 0, 1, …; UserError for anything but those degrees with the parity of harmonics."""
    found = [(part.arguments[0][0], part.arguments[0][1].arguments[0]) for part in irreps.arguments[0]]
    if [kind for _, kind in found] != [(degree, (-1) ** degree) for degree in range(len(found))]:
        text = " + ".join(f"{mul}x{degree}{'e' if parity == 1 else 'o'}" for mul, (degree, parity) in found)
        raise UserError(f"{name} has features {text}: not represented, 0e + 1o + 2e + … are")
    return [mul for mul, _ in found]


def _number(value: object, what: str, name: str) -> float:
    if isinstance(value, Tensor):
        value = value.item()
    if not isinstance(value, int | float) or value <= 0:
        raise UserError(f"{name} has no positive number as {what}; expected a MACE model as mace-torch saves it")
    return float(value)
