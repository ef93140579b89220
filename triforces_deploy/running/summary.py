"""A run in figures, from its log."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from triforces_deploy.running.logs import LogReader, Table

PICOSECONDS = {"metal": 1.0, "real": 1e-3}
"""A unit of time, by ``units``."""
MILLIELECTRONVOLTS = {"metal": 1e3, "real": 43.36410}
"""A unit of energy."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a run came to. What its log does not tell is None."""

    name: str
    done: bool
    step: int | None
    """Last one."""
    atoms: int | None
    starts: int
    wall_s: float
    """Of all starts together, with their set-up."""
    ns_per_day: float | None
    """Of the loops alone."""
    mean_temperature: float | None
    """K; mean over the last run of the input."""
    sd_temperature: float | None
    """K; standard deviation over the same lines."""
    drift: float | None
    """meV/atom/ps; slope of the conserved energy over the last run: of Econserve if it is a column, else of TotEng."""
    warnings: int
    warning: str
    """The most frequent one."""


def summarise(log: LogReader, name: str, units: str, done: bool, starts: int, wall_s: float) -> Summary:
    """The figures of a log."""
    last = next((t for t in reversed(log.tables) if len(t.rows) > 2), None)
    temperature = np.array(last.column("Temp")) if last else np.empty(0)
    return Summary(
        name=name,
        done=done,
        step=log.step,
        atoms=log.atoms,
        starts=starts,
        wall_s=round(wall_s, 2),
        ns_per_day=ns_per_day(log.tables, units),
        mean_temperature=float(temperature.mean()) if temperature.size else None,
        sd_temperature=float(temperature.std()) if temperature.size else None,
        drift=energy_drift(last, units, log.atoms) if last else None,
        warnings=sum(log.warnings.values()),
        warning=max(log.warnings, key=lambda text: log.warnings[text], default=""),
    )


def energy_drift(table: Table, units: str, atoms: int | None) -> float | None:
    """Slope of the conserved energy in time, meV/atom/ps; None where log or units do not give it."""
    time, energy = table.column("Time"), table.column("Econserve", "TotEng")
    if units not in PICOSECONDS or not atoms or len(time) < 3 or not energy or time[-1] == time[0]:
        return None
    slope = np.polyfit(np.array(time) - time[0], np.array(energy) - energy[0], 1)[0]
    return float(slope) * MILLIELECTRONVOLTS[units] / PICOSECONDS[units] / atoms


def ns_per_day(tables: Sequence[Table], units: str) -> float | None:
    """Simulated time over the time of the loops that have ended, minimisations left out."""
    simulated = seconds = 0.0
    for table in tables:
        time, step = table.column("Time"), table.column("Step")
        if table.seconds and len(time) > 1 and step[-1] > step[0] and not _minimised(table):
            simulated += (time[-1] - time[0]) / (step[-1] - step[0]) * table.steps * PICOSECONDS.get(units, 0.0)
            seconds += table.seconds
    return simulated / 1000 / (seconds / 86400) if simulated and seconds else None


def _minimised(table: Table) -> bool:
    """Nothing moves in a minimisation."""
    return not any(table.column("Temp"))
