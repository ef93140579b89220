"""Molecular dynamics at constant energy: how far the total energy drifts."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
from ase import Atoms, units
from ase.optimize import FIRE

from triforces_deploy.calculator import TriForcesCalculator
from triforces_deploy.certificate import Check
from triforces_deploy.errors import UserError
from triforces_deploy.potential import Potential

from .base import Array, Curve, Section, Subject, judged

FAMILY = "Dynamics"
TIMESTEP = 1.0
"""fs."""
TEMPERATURE = 300.0
"""K."""
SETTLE = 100
"""Steps before the energy is recorded, in which half of the kinetic energy turns into potential energy."""
EVERY = 5
"""Steps between records."""
SHORTEST, LONGEST = 200, 10_000
"""Steps; in between, as many as the time allows."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A simulation at constant energy."""

    time: Array
    """(M,) ps."""
    energy: Array
    """(M,) eV/atom, total."""
    temperature: float
    """K, mean."""

    def drift(self) -> float:
        """Slope of the total energy, eV/atom/ps; infinite where the simulation has broken off."""
        if not np.isfinite(self.energy).all():
            return float("inf")
        return abs(float(np.polyfit(self.time, self.energy, 1)[0]))

    def uncertainty(self) -> float:
        """Of the slope, from the slopes of the residual in four parts; eV/atom/ps."""
        rest = self.energy - np.polyval(np.polyfit(self.time, self.energy, 1), self.time)
        means = [part.mean() for part in np.array_split(rest, 4)]
        return float(np.std(means) / (self.time[-1] - self.time[0]) * 2)


def check(subject: Subject, seconds: float) -> Section:
    """The cell with a vacancy, or the user's own, at 300 K for as many steps as fit into ``seconds``."""
    try:
        run = simulate(subject.potential, subject.structures[subject.moving], seconds)
    except UserError as error:
        return Section(
            (judged(FAMILY, "drift at constant energy", float("inf"), subject.limits.drift, f"It broke off: {error}."),)
        )
    picture = Curve(
        "Constant energy",
        run.time,
        "time, ps",
        {"total energy": 1e6 * (run.energy - run.energy[0])},
        "change, µeV/atom",
    )
    return Section((verdict(run, subject.limits.drift, subject.moving), _temperature(run)), (picture,))


def verdict(run: Run, allowed: float, name: str = "defect") -> Check:
    """Pass up to ``allowed`` eV/atom/ps, fail beyond fifty times that; a run too short to tell is a warning."""
    drift, doubt = run.drift(), run.uncertainty()
    said = f"'{name}', {run.time[-1]:.3g} ps of {TIMESTEP:g} fs steps at {run.temperature:.0f} K, ± {doubt:.0e}."
    found = judged(FAMILY, "drift at constant energy", drift, allowed, said, "eV/atom/ps", fail=50.0)
    if found.verdict != "pass" and drift < 2 * doubt:
        why = f"{said} The run is too short for this bound: the number is fluctuation, not drift."
        return dataclasses.replace(found, verdict="warn", sentence=why)
    return found


def refuse_drift(potential: Potential, atoms: Atoms, allowed: float, seconds: float = 60.0) -> str:
    """A line that says how fast the total energy drifts; UserError where that is faster than ``allowed`` eV/atom/ps."""
    run = simulate(potential, atoms, seconds)
    found = f"{run.drift():.1e} ± {run.uncertainty():.0e} eV/atom/ps over {run.time[-1]:.3g} ps at {run.temperature:.0f} K"
    if not run.drift() <= allowed:
        raise UserError(f"the total energy drifts by {found}, --max-drift allows {allowed:g}; export with a higher --precision")
    return f"drift at constant energy: {found}, allowed {allowed:g}"


def _temperature(run: Run) -> Check:
    """A cell that melts or explodes heats itself far beyond what it was given."""
    said = "Mean temperature; twice what was given means that the crystal of this model is not a stable one."
    return judged(FAMILY, "temperature", run.temperature, 2 * TEMPERATURE, said, "K", worst="warn")


def simulate(potential: Potential, atoms: Atoms, seconds: float, longest: int = LONGEST) -> Run:
    """Relax, heat and run a structure at constant energy with velocity Verlet.

    Args:
        potential: any.
        atoms: the start; copied.
        seconds: about how long it may take, relaxation included; never fewer than ``SHORTEST`` steps.
        longest: steps at most.

    Raises:
        UserError: energies or forces stop being finite.
    """
    moving = atoms.copy()
    moving.calc = TriForcesCalculator(potential)
    start = time.monotonic()
    moving.get_forces()
    FIRE(moving, logfile=None).run(fmax=0.01, steps=60)
    _heat(moving, 2 * TEMPERATURE)
    clock = time.monotonic()
    _verlet(moving, SETTLE)
    pace = (time.monotonic() - clock) / SETTLE
    left = seconds - (time.monotonic() - start)
    steps = int(np.clip(left / pace, SHORTEST, longest)) // EVERY * EVERY
    records = [(moving.get_total_energy(), moving.get_temperature())]
    for _ in range(steps // EVERY):
        _verlet(moving, EVERY)
        records.append((moving.get_total_energy(), moving.get_temperature()))
    energy, temperature = np.array(records).T
    time_axis = np.arange(len(records)) * EVERY * TIMESTEP / 1000
    return Run(time_axis, energy / len(moving), float(temperature.mean()))


def _heat(atoms: Atoms, temperature: float) -> None:
    """Momenta of a temperature, in K, without motion of the whole."""
    masses = atoms.get_masses()[:, None]
    momenta = np.sqrt(masses * units.kB * temperature) * np.random.default_rng(17).normal(size=(len(atoms), 3))
    atoms.set_momenta(momenta - masses * momenta.sum(axis=0) / masses.sum())


def _verlet(atoms: Atoms, steps: int) -> None:
    """x, v ← one step of length Δt:  v += F Δt/2m,  x += v Δt,  v += F Δt/2m."""
    dt, masses = TIMESTEP * units.fs, atoms.get_masses()[:, None]
    forces = atoms.get_forces()
    for _ in range(steps):
        momenta = atoms.get_momenta() + 0.5 * dt * forces
        atoms.positions += dt * momenta / masses
        forces = atoms.get_forces()
        atoms.set_momenta(momenta + 0.5 * dt * forces)
