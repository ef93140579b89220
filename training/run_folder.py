"""The folder of one training run: recipe, split, log, checkpoints, and the state from which to go on."""

from __future__ import annotations

import csv
import io
import json
import math
import pickle
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning.fabric import Fabric

from triforces_deploy import checkpoint, pictures
from triforces_deploy.config import as_dict
from triforces_deploy.errors import UserError
from triforces_deploy.files import replacing
from triforces_deploy.model import Model
from triforces_deploy.training.task import Figures, Task

STATE_FORMAT = 2


class RunFolder:
    """Reads and writes one run; every file appears whole or not at all, the log grows by whole lines."""

    def __init__(self, folder: Path, task: Task[Any], fabric: Fabric) -> None:
        self.folder, self.task = folder, task
        self.device, self.processes = fabric.device, fabric.world_size
        self.columns = ("step", "lr", *task.training_columns, "val_score", *task.validation_columns)
        self.best = folder / "best.ckpt"
        self.last = folder / "last.ckpt"
        self.log = folder / "log.csv"
        self.state = folder / "state.ckpt"
        self.bad_batch = folder / f"bad_batch.{fabric.global_rank}.pt"

    def begin(self) -> None:
        """Start a new run: write down what it is and clear the log."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {self.folder}: {error.strerror}; choose another") from error
        for path in (self.state, self.best, self.last, self.bad_batch):
            path.unlink(missing_ok=True)
        _write(self.folder / "recipe.yaml", yaml.safe_dump(as_dict(self.task.plan), sort_keys=False, allow_unicode=True))
        _write(self.folder / "about.json", json.dumps(self._about(), indent=1))
        _write(self.folder / "split.json", json.dumps(self.task.split(), indent=1))
        _write(self.log, ",".join(self.columns) + "\n")

    def load_state(self) -> dict[str, Any] | None:
        """The state of an earlier call, None where there is none; UserError where it belongs to another run."""
        if not self.state.is_file():
            return None
        try:
            state = torch.load(self.state, map_location="cpu", weights_only=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
            raise UserError(f"{self.state} is damaged; remove it to start over") from error
        if not isinstance(state, dict) or state.get("format") != STATE_FORMAT:
            raise UserError(f"{self.state} is of another version of triforces-deploy; remove it to start over")
        ours, theirs = json.loads(identity(self.task)), json.loads(state["run"])
        changed = [key for key, value in ours.items() if value != theirs.get(key)]
        if changed:
            raise UserError(
                f"{self.folder} holds a run with another {' and '.join(changed)}; choose another folder, or ask for a new run"
            )
        found: dict[str, Any] = state
        return found

    def save_state(self, content: dict[str, Any]) -> None:
        """Write what :meth:`load_state` reads."""
        with replacing(self.state) as part:
            try:
                torch.save({**content, "format": STATE_FORMAT, "run": identity(self.task)}, part)
            except RuntimeError as error:  # how torch reports a full disk
                raise UserError(f"cannot write {self.state}: {str(error).splitlines()[0]}; free some space") from error

    def append(self, row: dict[str, float]) -> None:
        """Add a line to the log."""
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow([_cell(row[c]) if c in row else "" for c in self.columns])
        try:
            with self.log.open("a", encoding="utf-8") as stream:
                stream.write(line.getvalue())
        except OSError as error:
            raise UserError(f"cannot write {self.log}: {error.strerror}; free some space") from error

    def rewind(self, step: int) -> None:
        """Drop the lines that a killed run wrote after its last state; they will be written again."""
        lines = self.log.read_text(encoding="utf-8").splitlines(keepends=True) if self.log.is_file() else []
        kept = [line for line in lines[1:] if line.endswith("\n") and int(line.split(",", 1)[0]) <= step]
        _write(self.log, ",".join(self.columns) + "\n" + "".join(kept))

    def save_model(self, path: Path, model: Model, step: int, figures: Figures) -> None:
        """Write a checkpoint with where it came from."""
        provenance = {
            "step": step,
            "validation": as_dict(figures),
            "recipe": as_dict(self.task.plan),
            "files": self.task.files,
            "split": self.task.split(),
            **self.task.provenance(),
            "packages": _packages(),
        }
        checkpoint.save(path, model, provenance)

    def save_batch(self, step: int, pieces: list[Any]) -> None:
        """Write the structures of a bad step as plain tensors, for ``torch.load``."""
        with replacing(self.bad_batch) as part:
            torch.save({"step": step, "pieces": _plain(pieces)}, part)

    def draw(self) -> None:
        """Make curves.png of the log."""
        rows = list(csv.DictReader(io.StringIO(self.log.read_text(encoding="utf-8"))))
        columns = {}
        for name in self.columns[1:]:
            points = [(float(row["step"]), float(row[name])) for row in rows if row[name]]
            columns[name] = np.array(points, np.float64).reshape(-1, 2)
        pictures.log_curves(columns, self.folder / "curves.png")

    def _about(self) -> dict[str, Any]:
        """What a person wants to know who finds the folder a year later."""
        return {
            "data": self.task.files,
            **self.task.provenance(),
            "packages": _packages(),
            "python": platform.python_version(),
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.machine(),
            "processes": self.processes,
        }


def identity(task: Task[Any]) -> str:
    """What may not change between two calls of one run, as JSON; how long, how often and where may."""
    content = as_dict(task.plan)
    for key in (
        "max_minutes",
        "save_every",
        "threads",
        "device",
        "devices",
        "nodes",
        "strategy",
        "compile",
        "workers",
        "loggers",
    ):
        del content["trainer"][key]
    for key in ("files", "validation_files"):  # may have moved; their content counts
        del content["data"][key]
    if content["init"]["replay"] is not None:
        del content["init"]["replay"]["files"]
    content["content of the data files"] = [[*task.files.values(), *task.replayed.values()], task.split()]
    return json.dumps(content, sort_keys=True)  # the order of keys in a recipe means nothing


def _packages() -> dict[str, str]:
    return {name: version(name) for name in ("triforces-deploy", "torch", "lightning", "ase", "numpy", "vesin")}


def _plain(found: Any) -> Any:
    """The same without classes of ours, which ``torch.load`` would have to trust."""
    if isinstance(found, tuple) and type(found) is not tuple:  # named
        return {name: _plain(item) for name, item in found._asdict().items()}  # type: ignore[attr-defined]
    return [_plain(item) for item in found] if isinstance(found, tuple | list) else found


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.8g}" if not float(value).is_integer() else str(int(value))


def _write(path: Path, text: str) -> None:
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
