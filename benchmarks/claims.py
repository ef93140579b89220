"""Do streams, and pretraining without labels, help where labels are few? The claims of the paper on data made here.

    export OMP_NUM_THREADS=1 M='baseline;matched;streams;triforces'
    python benchmarks/claims.py --set tersoff                       # on one core; beside it, on the other:
    python benchmarks/claims.py --set tersoff --backbone mace --sizes 50,200 --only "$M"
    python benchmarks/claims.py --set molecules --sizes 50,200,1000 --only "$M"
    python benchmarks/claims.py --set cells --only "$M"

Makes the data once (claims_data.py), then fits every contender to the same small samples of it, with the same steps, batches
and learning rate, and measures all on the same other trajectories once, at the last step: nothing is chosen by them. The steps
of pretraining come on top, and see all of the pool but no label. A run is a folder under --work; a call skips those that are
finished, and --hours starts no run after that time. Writes results/claims.jsonl, one line for each run, and of all lines
results/claims.md and claims.png (claims_table.py), with verdicts by rule (claims_verdicts.py).

Processor seconds, measured on a crowded machine of two cores (claims.md has them by contender): 15 to 37 a fit and 46 to 106 a
pretraining with Orb, 41 to 57 and 132 with MACE. By these figures the first command takes 69 minutes, the others 27, 25 and 18
with their labels of 5 and 8: all of it, on two cores, 70 minutes.

800 steps are few: errors this large belong to models that nobody would use, and the comparison says who learns faster. One
learning rate, 2e-3, serves all.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from claims_data import DataSet, data_sets, locked, make, make_sample
from claims_figures import RESULTS
from claims_table import write_picture, write_table

from triforces_deploy.config import BackboneConfig, CompositionConfig, ModelConfig, StructureConfig, as_dict
from triforces_deploy.files import replacing
from triforces_deploy.model import Model
from triforces_deploy.training.data import DataConfig
from triforces_deploy.training.loop import TrainResult, train
from triforces_deploy.training.objectives.config import (
    BarlowConfig,
    DenoiseConfig,
    LeJEPAConfig,
    MaskedConfig,
    ObjectiveConfig,
)
from triforces_deploy.training.recipe import LossConfig, OptimiserConfig, Recipe, TrainerConfig
from triforces_deploy.training.transfer import InitConfig
from triforces_deploy.training.view_config import ViewsConfig

COMPOSITION = CompositionConfig(width=16, heads=2, layers=1, hidden=32)
STRUCTURE = StructureConfig(width=24, hidden=48, n_radial=6, n_channels=4, l_max=3, scales=(0.6, 1.0), layers=1)
_ORB = {"n_layers": 2, "mlp_depth": 1, "n_bessel": 8, "l_max": 2}
_MACE = {"l_hidden": 1, "l_max": 2, "correlation": [2, 2], "radial_hidden": [32]}
BACKBONES = {
    "orb_v3": ({**_ORB, "latent": 32, "mlp_hidden": 64}, {**_ORB, "latent": 38, "mlp_hidden": 74}),
    "mace": ({**_MACE, "channels": 38}, {**_MACE, "channels": 45}),
}
"""Options of a narrow and a wide one; the wide one alone has the parameters of the narrow one with both streams. Orb must learn
rotations, MACE's energies do not change with them; both narrow ones have 50,000 parameters."""
LEJEPA = LeJEPAConfig(slices=256, hidden=64, width=32)
DENOISE, MASKED = DenoiseConfig(), MaskedConfig(hidden=(64,))
OBJECTIVES = {
    "full": ObjectiveConfig(denoise=DENOISE, masked=MASKED, lejepa=LEJEPA),
    "no-lejepa": ObjectiveConfig(denoise=DENOISE, masked=MASKED),
    "no-denoise": ObjectiveConfig(masked=MASKED, lejepa=LEJEPA),
    "no-masked": ObjectiveConfig(denoise=DENOISE, lejepa=LEJEPA),
    "barlow": ObjectiveConfig(denoise=DENOISE, masked=MASKED, barlow=BarlowConfig(weight=0.1, hidden=(64,), width=32)),
}
PRETRAINING_STEPS, STEPS, BATCH = 1000, 800, 8
RATE = 2e-3
SIZES = (50, 200, 1000, 5000)


@dataclasses.dataclass(frozen=True)
class Contender:
    """What is compared."""

    name: str
    composition: bool = False
    structure: bool = False
    wide: bool = False
    objective: str | None = None
    """What it is pretrained with, a key of OBJECTIVES."""
    backbone: str = "orb_v3"


MAIN = (
    Contender("baseline"),
    Contender("matched", wide=True),
    Contender("streams", True, True),
    Contender("triforces", True, True, objective="full"),
)
ABLATIONS = (
    Contender("C+I", True, False),
    Contender("S+I", False, True),
    Contender("I, pretrained", objective="full"),
    Contender("C+I, pretrained", True, False, objective="full"),
    Contender("S+I, pretrained", False, True, objective="full"),
    *(Contender(f"triforces, {name}", True, True, objective=name) for name in OBJECTIVES if name != "full"),
)


def model_config(data: DataSet, contender: Contender) -> ModelConfig:
    """The shape of a contender."""
    return ModelConfig(
        elements=data.elements,
        cutoff=data.cutoff,
        backbone=BackboneConfig(contender.backbone, BACKBONES[contender.backbone][contender.wide]),
        composition=COMPOSITION if contender.composition else None,
        structure=STRUCTURE if contender.structure else None,
        head_hidden=(64,),
    )


def pretrained(data: DataSet, contender: Contender, seed: int, steps: int) -> tuple[Path, float]:
    """A checkpoint that has seen the pool's structures and none of their labels, and the seconds that it took."""
    assert contender.objective is not None
    streams = f"{'C' * contender.composition}{'S' * contender.structure}I"
    plan = Recipe(
        model=model_config(data, contender),
        data=DataConfig(files=(str(data.pool),), validation=0.02, test=0.0),
        objective=OBJECTIVES[contender.objective],
        views=ViewsConfig(noise=(0.05, 0.2)),
        optimiser=OptimiserConfig(lr=RATE, warmup=100, clip=10.0, ema=0.995),
        trainer=_trainer(steps, 2 * BATCH),
        seed=seed,
    )
    return _finished(plan, data.folder / f"{contender.backbone}-pretraining-{streams}-{contender.objective}-{steps}-{seed}")


def fitted(data: DataSet, contender: Contender, size: int, seed: int, steps: tuple[int, int]) -> dict[str, Any]:
    """Pretrain where the contender asks for it, fit to a sample, and say how it does on the test."""
    start, spent = InitConfig(), 0.0
    if contender.objective is not None:
        source, spent = pretrained(data, contender, seed, steps[0])
        start = InitConfig(checkpoint=str(source), strategy="full-transfer")
    plan = Recipe(
        model=model_config(data, contender),
        data=DataConfig(
            files=(str(make_sample(data, size, seed)),), validation_files=(str(data.test),), validation=0.0, test=0.0
        ),
        loss=LossConfig(),
        init=start,
        optimiser=OptimiserConfig(lr=RATE, warmup=100, ema=0.995),
        trainer=_trainer(steps[1], BATCH),
        seed=seed,
    )
    before = f"{steps[0]}+" if contender.objective else ""
    folder = data.folder / f"{contender.backbone}-{contender.name.replace(', ', '-')}-{size}-{before}{steps[1]}-{seed}"
    _, seconds = _finished(plan, folder)
    return {
        "set": data.folder.name, "backbone": contender.backbone, "contender": contender.name, "size": size, "seed": seed,
        "steps": steps[1],
        "pretraining_steps": steps[0] if contender.objective else 0, "seconds": seconds, "pretraining_seconds": spent,
        "parameters": parameters(plan.model),
        **json.loads((folder / "figures.json").read_text())["figures"],
    }  # fmt: skip


def parameters(config: ModelConfig) -> int:
    """Numbers that are fitted."""
    return sum(p.numel() for p in Model(config).parameters())


def _trainer(steps: int, batch: int) -> TrainerConfig:
    return TrainerConfig(
        steps=steps, batch_size=batch, validate_every=steps, log_every=100, save_every=500, loggers=(), threads=1, device="cpu"
    )


def _finished(plan: Recipe, folder: Path) -> tuple[Path, float]:
    """The checkpoint at the end of a run and its processor seconds; a run that is finished is not made again."""
    figures = folder / "figures.json"
    if not figures.is_file():
        started = time.process_time()
        result: TrainResult = train(plan, folder, progress=False)
        with (folder / "seconds.txt").open("a") as stream:
            stream.write(f"{time.process_time() - started:.1f}\n")
        if result.status != "finished":
            raise SystemExit(result.line())
        seconds = sum(map(float, (folder / "seconds.txt").read_text().split()))
        with replacing(figures) as part:
            part.write_text(json.dumps({"seconds": seconds, "figures": as_dict(result.metrics)}))
    return folder / "last.ckpt", json.loads(figures.read_text())["seconds"]


def runs(sizes: list[int], seeds: int) -> Iterator[tuple[Contender, int, int]]:
    """What is to be done, the most telling first: the main contenders from the smallest size on, then ablations of that."""
    for part, some in ((MAIN, sizes), (ABLATIONS, sizes[:1])):
        for size in some:
            for seed in range(seeds):
                for contender in part:
                    yield contender, size, seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=["tersoff", "molecules", "cells"], default="tersoff")
    parser.add_argument("--backbone", choices=list(BACKBONES), default="orb_v3")
    parser.add_argument("--hours", type=float, default=1.9)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="structures of the samples")
    parser.add_argument("--only", default="", help="names of contenders, separated by semicolons; all where empty")
    parser.add_argument("--steps", type=int, nargs=2, default=(PRETRAINING_STEPS, STEPS), help="of pretraining and of the fit")
    parser.add_argument("--work", type=Path, default=Path("claims-work"), help="folder of data and runs")
    options = parser.parse_args()
    if options.set == "molecules" and options.backbone == "mace":
        parser.error("the widths of mace are matched for three elements, molecules has seven; take another set")
    torch.set_num_threads(1)
    started = time.monotonic()
    data = data_sets(options.work)[options.set]
    n_pool = make(data)
    sizes = [size for size in map(int, options.sizes.split(",")) if size <= n_pool]
    only = {name.strip() for name in options.only.split(";") if name.strip()}
    for contender, size, seed in runs(sizes, options.seeds):
        if only and contender.name not in only:
            continue
        if time.monotonic() - started > 3600 * options.hours:
            print("time is up; the same command goes on from here")
            break
        row = fitted(data, dataclasses.replace(contender, backbone=options.backbone), size, seed, tuple(options.steps))
        record(row)
        print(json.dumps({k: row[k] for k in ("contender", "size", "seed", "energy_mae", "forces_mae", "seconds")}), flush=True)
    write_picture()


def record(row: dict[str, Any]) -> None:
    """Put a line in the place of an earlier one of the same run, and write the table anew; one process at a time."""
    path = RESULTS / "claims.jsonl"
    keys = ("set", "backbone", "contender", "size", "seed", "steps", "pretraining_steps")
    with locked(RESULTS):
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        found = {tuple(old[k] for k in keys): old for old in rows} | {tuple(row[k] for k in keys): row}
        with replacing(path) as part:
            part.write_text("".join(json.dumps(r) + "\n" for r in found.values()))
        write_table()


if __name__ == "__main__":
    main()
