"""Rows of the log for programs that draw curves while a run goes on; log.csv is the record."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from triforces_deploy.errors import UserError
from triforces_deploy.files import replacing


class Logger(ABC):
    """Takes what log.csv takes."""

    @abstractmethod
    def row(self, values: Mapping[str, float]) -> None:
        """One line of the log, by column; ``step`` is among them."""

    @abstractmethod
    def close(self) -> None:
        """Write what is held back."""


class TensorBoard(Logger):
    """Event files in ``tensorboard/`` of the run folder, written at once: a thread that does it later hangs on a full disk."""

    def __init__(self, folder: Path, step: int, _: Mapping[str, Any]) -> None:
        from tensorboardX.record_writer import RecordWriter

        self.path = folder / "tensorboard" / f"events.out.tfevents.{int(time.time())}.{step}"
        try:
            self.path.parent.mkdir(exist_ok=True)
            self.writer = RecordWriter(str(self.path))
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}; free some space") from error
        self._write(file_version="brain.Event:2")
        if step:  # what a killed run wrote after its last state is written again
            self._write(step=step + 1, session_log={"status": "START"})

    def row(self, values: Mapping[str, float]) -> None:
        scalars = [{"tag": name, "simple_value": value} for name, value in values.items() if name != "step"]
        self._write(step=int(values["step"]), summary={"value": scalars})

    def close(self) -> None:
        self.writer.close()

    def _write(self, **event: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        try:
            self.writer.write(Event(wall_time=time.time(), **event).SerializeToString())
            self.writer.flush()
        except OSError as error:
            with suppress(OSError):  # closing tries once more to write what is left
                self.writer.close()
            raise UserError(f"cannot write {self.path}: {error.strerror}; free some space") from error


class WandB(Logger):
    """Weights & Biases; project and account are those of its own environment variables.

    ``wandb.id`` in the run folder says which of its runs a later call goes on with.
    """

    def __init__(self, folder: Path, step: int, about: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError("trainer.loggers names wandb, which is not installed; pip install wandb, or remove it") from error
        path = folder / "wandb.id"
        known = path.read_text(encoding="utf-8") if step and path.is_file() else None
        resume = "allow" if known else None
        self.run = wandb.init(dir=str(folder), name=folder.name, config=dict(about), id=known, resume=resume)
        with replacing(path) as part:
            part.write_text(self.run.id, encoding="utf-8")

    def row(self, values: Mapping[str, float]) -> None:
        self.run.log({k: v for k, v in values.items() if k != "step"}, step=int(values["step"]))

    def close(self) -> None:
        self.run.finish()


LOGGERS: dict[str, type[TensorBoard] | type[WandB]] = {"tensorboard": TensorBoard, "wandb": WandB}


def start(names: Sequence[str], folder: Path, step: int, about: Mapping[str, Any]) -> list[Logger]:
    """The loggers of a run that begins after ``step``; UserError where one is not installed."""
    return [LOGGERS[name](folder, step, about) for name in names]
