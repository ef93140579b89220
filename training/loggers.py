"""Rows of the log for programs that draw curves while a run goes on; log.csv is the record."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from triforces_deploy.errors import UserError


class Logger(ABC):
    """Takes what log.csv takes."""

    @abstractmethod
    def row(self, values: Mapping[str, float]) -> None:
        """One line of the log, by column; ``step`` is among them."""

    @abstractmethod
    def close(self) -> None:
        """Write what is held back."""


class TensorBoard(Logger):
    """Event files in ``tensorboard/`` of the run folder."""

    def __init__(self, folder: Path, step: int, _: Mapping[str, Any]) -> None:
        from tensorboardX import SummaryWriter

        # What a killed run wrote after its last state is written again.
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def row(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if name != "step":
                self.writer.add_scalar(name, value, int(values["step"]))

    def close(self) -> None:
        self.writer.close()


class WandB(Logger):
    """Weights & Biases; project and account are those of its own environment variables."""

    def __init__(self, folder: Path, step: int, about: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError("trainer.loggers names wandb, which is not installed; pip install wandb, or remove it") from error
        self.run = wandb.init(dir=str(folder), name=folder.name, config=dict(about), resume="allow" if step else None)

    def row(self, values: Mapping[str, float]) -> None:
        self.run.log({k: v for k, v in values.items() if k != "step"}, step=int(values["step"]))

    def close(self) -> None:
        self.run.finish()


LOGGERS: dict[str, type[TensorBoard] | type[WandB]] = {"tensorboard": TensorBoard, "wandb": WandB}


def start(names: Sequence[str], folder: Path, step: int, about: Mapping[str, Any]) -> list[Logger]:
    """The loggers of a run that begins after ``step``; UserError where one is not installed."""
    return [LOGGERS[name](folder, step, about) for name in names]
