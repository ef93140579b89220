"""Energies, forces and stresses of extended tight binding, computed by tblite inside this process.

Grimme et al., J. Chem. Theory Comput. 13, 1989 (2017) for GFN1-xTB; Bannwarth et al., ibid. 15, 1652 (2019) for GFN2-xTB.
Quantum mechanics for small things: electrons are solved for at every step, crystals at the Γ point of their supercell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from types import TracebackType
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import CalculationFailed
from ase.calculators.singlepoint import SinglePointCalculator
from ase.optimize import BFGS

from triforces_deploy.errors import UserError
from triforces_deploy.neighbours import check_geometry

METHODS = ("GFN1-xTB", "GFN2-xTB")

FORCE_AT_REST = 0.01
"""eV/Å. Relaxations end here."""


class XtbReference:
    """One method of tblite, with the methods of :class:`~triforces_deploy.training.reference.Reference`."""

    def __init__(self, method: str) -> None:
        try:
            from tblite.ase import TBLite
        except ImportError as error:
            raise UserError(f"{method} needs the package tblite; run pip install 'triforces-deploy[xtb]'") from error
        self.method = method
        self._calculator: Any = TBLite(method=method, verbosity=0)

    def __enter__(self) -> XtbReference:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Nothing is held."""

    def provenance(self) -> dict[str, str | int]:
        """Where labels come from: the method and the version of tblite."""
        return {"potential": self.method, "tblite_version": metadata.version("tblite")}

    def labelled(self, atoms: Atoms) -> Atoms | None:
        """A copy with energy (eV), forces (eV/Å) and, where there is a volume, stress (eV/Å³, ASE's sign).

        None where the electrons do not converge, as they may not in a structure that is far from any real one.
        """
        own = self._ready(atoms)
        try:
            results = {"energy": own.get_potential_energy(), "forces": own.get_forces()}
            if atoms.pbc.all():
                results["stress"] = own.get_stress()
        except CalculationFailed:
            return None
        out: Atoms = atoms.copy()
        out.calc = SinglePointCalculator(out, **results)
        return out

    def relaxation(self, atoms: Atoms, pieces: Sequence[int]) -> list[Atoms]:
        """Structures along a minimisation at fixed cell, after so many more steps each (BFGS); fewer where it fails."""
        own = self._ready(atoms)
        optimizer = BFGS(own, logfile=None)
        return _path(own, atoms, [partial(optimizer.run, FORCE_AT_REST, n) for n in pieces])

    def dynamics(self, atoms: Atoms, kelvin: float, frames: int, every: int, seed: int, langevin: bool) -> list[Atoms]:
        """Structures along molecular dynamics of 1 fs steps, one every so many; arguments as of the other reference.

        Fewer structures where the electrons do not converge on the way.
        """
        from ase.md.langevin import Langevin
        from ase.md.velocitydistribution import Stationary
        from ase.md.verlet import VelocityVerlet

        own, rng = self._ready(atoms), np.random.default_rng(seed)
        widths = np.sqrt(2 * kelvin * units.kB * own.get_masses())[:, None]
        own.set_momenta(widths * rng.standard_normal((len(own), 3)))  # Maxwell and Boltzmann's
        Stationary(own)
        motion = (
            Langevin(own, units.fs, temperature_K=kelvin, friction=0.01 / units.fs, fixcm=False, rng=rng)
            if langevin
            else VelocityVerlet(own, units.fs)
        )
        return _path(own, atoms, [partial(motion.run, every)] * frames)

    def _ready(self, atoms: Atoms) -> Atoms:
        """A copy with the calculator."""
        check_geometry(atoms)
        if 0 < sum(atoms.pbc) < 3:
            raise UserError(f"{self.method} needs a molecule, or a cell that is periodic in three directions")
        own: Atoms = atoms.copy()
        self._calculator.reset()
        own.calc = self._calculator
        return own


def _path(moving: Atoms, like: Atoms, moves: Sequence[Callable[[], object]]) -> list[Atoms]:
    """Structures after each move; it ends early where the electrons do not converge."""
    path = []
    for move in moves:
        try:
            move()
        except CalculationFailed:
            break
        out: Atoms = like.copy()
        out.positions = moving.positions
        path.append(out)
    return path
