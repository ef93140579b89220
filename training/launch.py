"""How several processes come to be, and that they agree with the recipe before they wait for each other.

On one node the command starts its other processes itself. On several nodes srun or torchrun starts all of them; or somebody
starts one command on each node, which then starts the others there, and says by MASTER_ADDR, MASTER_PORT and NODE_RANK where
the nodes meet and which of them this is. A launch that does not fit would wait for processes that never come, or run the
whole training several times into one folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from triforces_deploy.errors import UserError
from triforces_deploy.training.recipe import TrainerConfig

MEETING = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")


def environment_of(trainer: TrainerConfig) -> ClusterEnvironment:
    """What tells each process who it is; UserError where the launch does not fit ``nodes`` and ``devices``."""
    if TorchElasticEnvironment.detect():
        _compare(trainer, "torchrun", os.environ, "WORLD_SIZE", "LOCAL_WORLD_SIZE")
        return TorchElasticEnvironment()
    if "SLURM_NTASKS" in os.environ and SLURMEnvironment.job_name() not in ("bash", "interactive"):
        _compare(trainer, "SLURM", os.environ, "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE")
        return SLURMEnvironment(auto_requeue=False)
    if trainer.nodes > 1:
        _refuse_strangers(trainer, os.environ)
    return LightningEnvironment()


def _compare(trainer: TrainerConfig, who: str, said: Mapping[str, str], everywhere: str, on_each: str) -> None:
    wanted = trainer.nodes * trainer.devices
    found = int(said[everywhere])
    # Of one task SLURM does not say how many there are on each node.
    here = int(said.get(on_each, "1" if found == 1 else "0"))
    if (found, here) == (wanted, trainer.devices):
        return
    starts = {
        "torchrun": f"torchrun --nnodes={trainer.nodes} --nproc-per-node={trainer.devices} --no-python tfdeploy train …",
        "SLURM": f"srun --nodes={trainer.nodes} --ntasks-per-node={trainer.devices} tfdeploy train …",
    }
    how_many = f"{found} processes, {here} on each node" if here else f"{found} processes without saying how many on each node"
    raise UserError(
        f"{who} says {how_many} ({everywhere}, {on_each}); the recipe wants {wanted}: trainer.nodes {trainer.nodes} with "
        f"trainer.devices {trainer.devices} each; change one of both, or start with `{starts[who]}`"
    )


def _refuse_strangers(trainer: TrainerConfig, said: Mapping[str, str]) -> None:
    missing = [name for name in MEETING if name not in said]
    if missing:
        raise UserError(
            f"trainer.nodes is {trainer.nodes} and {' and '.join(missing)} are not set, so that the nodes cannot meet; start "
            "with srun or torchrun, or set MASTER_ADDR, MASTER_PORT and NODE_RANK (0 on the first node) on each node"
        )
    for name in MEETING[1:]:
        if not said[name].isdigit():
            raise UserError(f"{name} is '{said[name]}'; expected a whole number")
    if int(said["NODE_RANK"]) >= trainer.nodes:
        raise UserError(f"NODE_RANK is {said['NODE_RANK']}, of trainer.nodes {trainer.nodes}; expected 0 … {trainer.nodes - 1}")
