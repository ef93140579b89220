"""What a training run is: one YAML file, read strictly."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from triforces_deploy.config import ModelConfig, as_dict, read, read_yaml
from triforces_deploy.errors import UserError
from triforces_deploy.files import existing
from triforces_deploy.training.data import DataConfig, Unit
from triforces_deploy.training.importance import ImportanceConfig
from triforces_deploy.training.objectives.config import ObjectiveConfig
from triforces_deploy.training.transfer import InitConfig, model_of
from triforces_deploy.training.view_config import ViewsConfig

Form = Literal["mae", "mse", "huber", "l2"]

RECIPES = Path(__file__).parent / "recipes"
"""Recipes that come with the package; each may be named without folder and suffix."""


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """L = w_E ℓ(E/N) + w_F ℓ(F) + w_σ ℓ(σ), in eV, Å; each structure counts the same, whatever its size.

    'mae', 'mse' and 'huber' are means over components, 'l2' is the mean length of the error vector of an atom (for
    stress: of the error matrix of a structure).
    """

    energy: float = 50.0
    forces: float = 100.0
    stress: float = 50.0
    energy_form: Form = "mae"
    forces_form: Form = "l2"
    stress_form: Form = "mae"
    huber_delta: float = 0.01
    """Where 'huber' turns from square to linear, in the units of the quantity."""
    properties: dict[str, float] = dataclasses.field(default_factory=dict)
    """Weights of ``model.properties`` by name, 1 where not given. There is no other loss then: Σ_p w_p ℓ(Δ_p / s_p), with
    s_p the spread of the training labels, of 'sum' both per atom; every labelled structure or atom counts the same. Of
    'binary' ones ℓ is −ln of the probability of what is so."""
    properties_form: Form = "mae"
    """Of ℓ; what ``huber_delta`` is then counted in is s_p."""
    joint: bool = False
    """Fit energies, forces and stress as well as ``model.properties``: the sum of both losses."""
    importance: ImportanceConfig | None = None
    """Let forces near foreign atoms count more, in training alone; see importance.py."""


@dataclasses.dataclass(frozen=True)
class OptimiserConfig:
    """AdamW with a linear warm-up, then half a cosine down to ``lr`` × ``final``."""

    lr: float = 3e-4
    weight_decay: float = 0.01
    """Applies to matrices, not to biases and norms."""
    warmup: int = 500
    """Steps."""
    final: float = 0.01
    clip: float = 1.0
    """Largest norm of the gradient."""
    ema: float = 0.999
    """Decay of the moving average of the weights, which is what is validated and saved."""


@dataclasses.dataclass(frozen=True)
class TrainerConfig:
    """How long and on what."""

    steps: int = 100_000
    batch_size: int = 32
    """Of a step, all processes together, in ``batch_by``."""
    batch_by: Unit = "structures"
    """What the size counts; by atoms or edges, batches of unlike structures cost alike and are never larger than that."""
    accumulate: int = 1
    """Pieces in which each process takes its share, one after the other; the gradient is that of the whole batch."""
    workers: int = 0
    """Processes, each, that make batches ahead; 0 makes them between steps."""
    validate_every: int = 1000
    log_every: int = 50
    save_every: int = 500
    """Steps between states that a killed run can go on from; validation saves one too."""
    max_minutes: float | None = None
    """Stop after so long even if steps are left; a later call goes on."""
    precision: Literal["float32", "float64", "bf16"] = "float32"
    """Of the network; edge vectors and sums are float64 always. 'bf16' keeps float32 weights and multiplies in bfloat16."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1
    """Processes on each node, one per GPU; the command starts them itself, or finds itself started by srun or torchrun."""
    nodes: int = 1
    """Started by srun or torchrun, or one command on each with MASTER_ADDR, MASTER_PORT and NODE_RANK; see launch.py."""
    strategy: Literal["replicated", "sharded", "fsdp"] = "replicated"
    """What several processes share besides the batch: 'sharded' leaves each only its part of what the optimiser and the
    moving average remember; see sharded.py, and there why 'fsdp' is refused. A run may go on with the other, and with another
    number of processes."""
    compile: bool = False
    """Compile energy, forces and stress of a fit to labels, which takes minutes at the start; see compiled.py. It is for small
    models: on a CPU 85 % of a step of the full-size one are matrix products at the machine's speed already."""
    loggers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    """Besides log.csv, which is always there; wandb is not installed with this package."""
    threads: int | None = None
    """Of torch on the CPU; its own choice where not given."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides what comes out, besides the content of the data files."""

    model: ModelConfig
    """With ``init.checkpoint`` a file need say no more than what shall be another than in the checkpoint, such as streams."""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    objective: ObjectiveConfig | None = None
    """Pretraining on structures without labels, in place of ``loss``."""
    views: ViewsConfig = dataclasses.field(default_factory=ViewsConfig)
    """What pretraining does to structures."""
    init: InitConfig = dataclasses.field(default_factory=InitConfig)
    """Another checkpoint to start from, what of it stands still, and how fast the parts learn."""
    optimiser: OptimiserConfig = dataclasses.field(default_factory=OptimiserConfig)
    trainer: TrainerConfig = dataclasses.field(default_factory=TrainerConfig)
    seed: int = 0


def load_recipe(path: str | Path, files: Sequence[Path] = (), streams: bool = True, start: Path | None = None) -> Recipe:
    """Read a recipe file, or one of the package by its bare name (minimal, demo, paper, pretrain, finetune, properties).

    Args:
        path: the YAML file or the name. With the key ``base`` it is put on top of the recipe that this names, key by key in
            each section.
        files: labelled structures that take the place of ``data.files``.
        streams: False leaves the composition and the structure stream out, for comparison.
        start: checkpoint that takes the place of ``init.checkpoint``.

    Raises:
        UserError: no such file, not YAML, an unknown key or a value that cannot be.
    """
    found = _find(Path(path))
    said = _with_base(found)
    init = read(InitConfig, said.get("init") or {}, f"{found.name}.init")
    if start is not None:
        init = dataclasses.replace(init, checkpoint=str(start))
    if init.checkpoint:
        said = {**said, "init": as_dict(init), "model": model_of(init, said.get("model") or {}, f"{found.name}.model")}
    recipe = read(Recipe, said, found.name)
    _check(recipe, found.name)
    if files:
        recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, files=tuple(str(f) for f in files)))
    if not streams:
        recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, composition=None, structure=None))
    return recipe


def _with_base(path: Path) -> dict[str, Any]:
    """What a recipe says, and its base where it says nothing; a base has none itself, so that two files say it all."""
    said = read_yaml(path)
    if "base" not in said:
        return said
    base = said.pop("base")
    if not isinstance(base, str):
        raise UserError(f"{path.name}.base: expected the name of a recipe, got {base!r}")
    beside = path.parent / base
    found = _find(beside if beside.is_file() else Path(base))
    below = read_yaml(found)
    if "base" in below:
        raise UserError(f"{path.name}.base: {found.name} has a base itself, {below['base']}; take that and say the rest")
    for section, values in said.items():
        both = isinstance(values, dict) and isinstance(below.get(section), dict)
        below[section] = {**below[section], **values} if both else values
    return below


def _find(path: Path) -> Path:
    if not path.is_file() and path.name == str(path) and path.suffix == "" and (RECIPES / f"{path}.yaml").is_file():
        return RECIPES / f"{path}.yaml"
    return existing(path, f"a recipe (YAML), or one of the names {', '.join(sorted(p.stem for p in RECIPES.glob('*.yaml')))}")


def _check(recipe: Recipe, where: str) -> None:
    """Values that are of the right type and still make no sense."""
    o, t, w = recipe.optimiser, recipe.trainer, recipe.loss
    if recipe.objective is not None:
        recipe.objective.check(f"{where}.objective")
    recipe.views.check(f"{where}.views")
    recipe.init.check(f"{where}.init")
    if w.importance is not None:
        w.importance.check(f"{where}.loss.importance")
    names = [p.name for p in recipe.model.properties]
    if w.joint and not (names and recipe.model.direct is False):
        raise UserError(f"{where}.loss.joint: expected model.properties beside conservative forces; set it to false")
    if names and recipe.objective is not None:
        raise UserError(f"{where}.model.properties: pretraining fits none; leave them out, and start from what it gives")
    for name, value in w.properties.items():
        if name not in names:
            raise UserError(f"{where}.loss.properties: '{name}' is none of model.properties ({', '.join(names) or 'none'})")
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise UserError(f"{where}.loss.properties.{name}: expected a number above 0, got {value!r}")
    positive = {
        "optimiser.lr": o.lr, "optimiser.clip": o.clip, "trainer.steps": t.steps, "trainer.batch_size": t.batch_size,
        "trainer.validate_every": t.validate_every, "trainer.log_every": t.log_every, "trainer.save_every": t.save_every,
        "trainer.max_minutes": 1 if t.max_minutes is None else t.max_minutes, "loss.huber_delta": w.huber_delta,
        "trainer.threads": 1 if t.threads is None else t.threads,
        "trainer.accumulate": t.accumulate, "trainer.devices": t.devices, "trainer.nodes": t.nodes,
    }  # fmt: skip
    for name, value in positive.items():
        if not value > 0:
            raise UserError(f"{where}.{name}: expected a number above 0, got {value}")
    not_negative = {
        "optimiser.weight_decay": o.weight_decay, "optimiser.warmup": o.warmup, "loss.energy": w.energy,
        "loss.forces": w.forces, "loss.stress": w.stress, "seed": recipe.seed, "data.split_seed": recipe.data.split_seed,
        "trainer.workers": t.workers,
    }  # fmt: skip
    for name, value in not_negative.items():
        if not value >= 0:
            raise UserError(f"{where}.{name}: expected 0 or more, got {value}")
    _refuse(recipe, where)
    if w.energy + w.forces + w.stress == 0:
        raise UserError(f"{where}.loss: all weights are 0; give energy, forces or stress one above 0")
    for name, value in {"optimiser.ema": o.ema, "optimiser.final": o.final}.items():
        if not 0 <= value <= 1:
            raise UserError(f"{where}.{name}: expected a number in 0 … 1, got {value}")


def _refuse(recipe: Recipe, where: str) -> None:
    """What cannot work with forces that are derivatives, and what compiling has not been made for."""
    m, t = recipe.model, recipe.trainer
    special = recipe.objective is not None or m.properties or m.direct or m.readout != "sum" or t.precision == "bf16"
    if t.compile and special:
        raise UserError(
            f"{where}.trainer.compile: only fits to energies that are sums, and to their derivatives, are compiled, in float32 "
            "or float64; no pretraining, properties or direct heads; set it to false"
        )
    if t.strategy == "fsdp":
        raise UserError(
            f"{where}.trainer.strategy: FSDP frees weights that the derivative of the forces still needs; 'sharded' shares all "
            "but the weights themselves"
        )
