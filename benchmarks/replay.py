"""Does replay keep a model from forgetting? Fine-tuning on new crystals with and without old ones in every batch.

    OMP_NUM_THREADS=1 nice python benchmarks/replay.py [--seeds 3] [--work replay-work]

A small model with both streams is trained on Si and Ge with defects, then fine-tuned on few structures of SiC, all its parts,
with the same steps, batches and rate whatever the share of old structures in a batch; SiCGe.tersoff labels everything. Errors
are those of other trajectories of both, energies after a shift for each element that fits best. Some 4,500 steps of 8
structures of 8 atoms, two to three minutes of one quiet core. Writes results/replay.jsonl, a line for each run, and
results/replay.md; a run that is there is not made again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from triforces_deploy import checkpoint
from triforces_deploy.config import BackboneConfig, CompositionConfig, ModelConfig, StructureConfig
from triforces_deploy.files import replacing
from triforces_deploy.training.converting import Limits, convert
from triforces_deploy.training.data import DataConfig, load_whole
from triforces_deploy.training.labels import LabelConfig, label
from triforces_deploy.training.loop import train
from triforces_deploy.training.objective import Tally, predict
from triforces_deploy.training.recipe import OptimiserConfig, Recipe, TrainerConfig
from triforces_deploy.training.transfer import InitConfig, ReplayConfig, zero_of

RESULTS = Path(__file__).parent / "results"
FEW = {"atoms": 8, "every": 20, "substitutes": ()}
SETS = {
    "old": LabelConfig(hosts=("Si", "Ge"), trajectories=60, frames=10, seed=0, defects=("none", "vacancy"), **FEW),
    "old-test": LabelConfig(hosts=("Si", "Ge"), trajectories=20, frames=10, seed=1, defects=("none", "vacancy"), **FEW),
    "new": LabelConfig(hosts=("SiC",), trajectories=5, frames=10, seed=2, defects=("none", "vacancy", "antisite"), **FEW),
    "new-test": LabelConfig(hosts=("SiC",), trajectories=20, frames=10, seed=3, defects=("none", "vacancy", "antisite"), **FEW),
}
MODEL = ModelConfig(
    elements=("C", "Si", "Ge"),
    cutoff=3.5,
    backbone=BackboneConfig(
        "orb_v3", {"latent": 32, "n_layers": 2, "mlp_hidden": 64, "mlp_depth": 1, "n_bessel": 8, "l_max": 2}
    ),
    composition=CompositionConfig(width=16, heads=2, layers=1, hidden=32),
    structure=StructureConfig(width=24, hidden=48, n_radial=6, n_channels=4, l_max=3, scales=(0.6, 1.0), layers=1),
    head_hidden=(64,),
)
STEPS, MORE = 600, 300
SHARES = (0.0, 0.25, 0.5)
"""Of old structures in a batch."""


def made(work: Path) -> dict[str, Path]:
    """Packed structures by name; what is there stays."""
    work.mkdir(parents=True, exist_ok=True)
    for name, config in SETS.items():
        if not (work / name).exists():
            label(config, work / f"{name}.extxyz", progress=False)
            convert([work / f"{name}.extxyz"], work / name, MODEL.cutoff, Limits())
    return {name: work / name for name in SETS}


def plan_of(files: Path, held_out: Path, steps: int, rate: float, seed: int, init: InitConfig) -> Recipe:
    return Recipe(
        model=MODEL,
        data=DataConfig(files=(str(files),), validation_files=(str(held_out),), validation=0.0, test=0.0),
        init=init,
        optimiser=OptimiserConfig(lr=rate, warmup=50, ema=0.99),
        trainer=TrainerConfig(
            steps=steps, batch_size=8, validate_every=steps, log_every=50, save_every=steps, loggers=(), threads=1, device="cpu"
        ),
        seed=seed,
    )


def finish(plan: Recipe, out: Path) -> None:
    result = train(plan, out, progress=False)
    if result.status != "finished":
        raise SystemExit(result.line())


def errors(checkpoint_file: Path, sets: dict[str, Path]) -> dict[str, float]:
    """MAE of both tests, each counted from its own zero of energy: a fit to new labels moves that of the model."""
    found = {}
    for name in ("old", "new"):
        model, _ = checkpoint.load_fitted(checkpoint_file)
        part, _ = load_whole([str(sets[f"{name}-test"])], model.config)
        model.references += zero_of(model, part.chunks())
        tally = Tally()
        for sample in part.chunks():
            tally.add(predict(model, sample.graph), sample)
        metrics = tally.metrics()
        found |= {f"{name} energy": metrics.energy_mae, f"{name} forces": metrics.forces_mae}
    return found


def runs(sets: dict[str, Path], work: Path, seeds: int) -> Iterator[dict[str, Any]]:
    for seed in range(seeds):
        first = work / f"old-{seed}"
        finish(plan_of(sets["old"], sets["old-test"], STEPS, 2e-3, seed, InitConfig()), first)
        yield {"model": "before", "seed": seed, **errors(first / "last.ckpt", sets)}
        for share in SHARES:
            replay = ReplayConfig(files=(str(sets["old"]),), share=share) if share else None
            init = InitConfig(checkpoint=str(first / "last.ckpt"), strategy="full", replay=replay)
            out = work / f"new-{share:g}-{seed}"
            finish(plan_of(sets["new"], sets["new-test"], MORE, 1e-3, seed, init), out)
            yield {"model": f"replay {share:g}", "seed": seed, **errors(out / "last.ckpt", sets)}


def table(rows: list[dict[str, Any]]) -> str:
    """Means over seeds ± standard errors."""
    names = [f"{which} {what}" for which in ("old", "new") for what in ("energy", "forces")]
    lines = [
        "| model | old energy | old forces | new energy | new forces |",
        "|---|---|---|---|---|",
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        own = np.array([[row[name] for name in names] for row in rows if row["model"] == model])
        spread = own.std(0, ddof=1) / np.sqrt(len(own)) if len(own) > 1 else np.full(len(names), np.nan)
        cells = [f"{mean:.3g} ± {error:.2g}" for mean, error in zip(own.mean(0), spread, strict=True)]
        shown = {"before": "before", "replay 0": "fine-tuned, no replay"}.get(model, f"fine-tuned, {model}")
        lines.append(f"| {shown} | {' | '.join(cells)} |")
    n = len({row["seed"] for row in rows})
    return (
        f"# Replay against forgetting\n\nMAE of test trajectories, meV/atom and meV/Å, {n} seeds, mean ± standard error; "
        f"energies after the best shift\nfor each element. Trained on {60 * 10} structures of Si and Ge for {STEPS} steps, "
        f"then on {5 * 10} of SiC for {MORE}, batches of 8\nof which the said share is old. `python benchmarks/replay.py`.\n\n"
        + "\n".join(lines)
        + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("replay-work"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for row in runs(made(options.work), options.work, options.seeds):
        rows.append(row)
        print(json.dumps(row), flush=True)
        with replacing(RESULTS / "replay.jsonl") as part:
            part.write_text("".join(json.dumps(r) + "\n" for r in rows))
        with replacing(RESULTS / "replay.md") as part:
            part.write_text(table(rows))


if __name__ == "__main__":
    main()
