"""Energies, forces and stresses of a published potential, computed by LAMMPS inside this process."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import atomic_masses, atomic_numbers
from numpy.typing import NDArray

from triforces_deploy.errors import UserError
from triforces_deploy.files import existing, sha256_of
from triforces_deploy.neighbours import check_geometry
from triforces_deploy.units import LAMMPS_BAR


@dataclasses.dataclass(frozen=True)
class Source:
    """A potential file that comes with LAMMPS."""

    style: str
    """LAMMPS' pair style."""
    names: dict[str, str]
    """Element → its name in the file."""
    strangers: frozenset[frozenset[str]] = frozenset()
    """Pairs of elements that the file has no parameters for."""

    def mixes(self, guest: str, hosts: Sequence[str]) -> bool:
        """Whether an element can be labelled beside others."""
        return guest in self.names and not any(frozenset({guest, host}) in self.strangers for host in hosts)


SOURCES = {
    "SiCGe.tersoff": Source("tersoff", {"Si": "Si(D)", "C": "C", "Ge": "Ge"}, frozenset({frozenset({"C", "Ge"})})),
    "Si.sw": Source("sw", {"Si": "Si"}),
}
"""File name → how to use it. In SiCGe.tersoff only Si(D) mixes with C and Ge, and nothing mixes C with Ge."""


class Reference:
    """One LAMMPS instance with one potential; use it in a ``with`` block.

    Structures go in and come out in the frame they have; LAMMPS sees them turned so that the cell is lower triangular.
    """

    def __init__(self, potential: str) -> None:
        import lammps

        self.source = SOURCES[potential]
        folder = Path(lammps.__file__).parent / "share" / "lammps" / "potentials"
        self.file = existing(folder / potential, "a potential file of the lammps package; install lammps again")
        self._lmp = lammps.lammps(cmdargs=["-screen", "none", "-log", "none"])

    def __enter__(self) -> Reference:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lmp.close()

    def provenance(self) -> dict[str, str | int]:
        """Where labels come from: file, its hash and first line, and the version of LAMMPS."""
        first = self.file.read_text(encoding="utf-8", errors="replace").splitlines()[0]
        return {
            "potential": self.file.name,
            "potential_sha256": sha256_of(self.file),
            "reference": " ".join(first.lstrip("# ").replace('"', "'").split()),
            "lammps_version": int(self._lmp.version()),
        }

    def labelled(self, atoms: Atoms) -> Atoms:
        """A copy with energy (eV), forces (eV/Å) and stress (eV/Å³, ASE's sign) in a SinglePointCalculator."""
        turn = self._load(atoms)
        self._run("run 0 post no")
        forces = np.array(self._lmp.gather_atoms("f", 1, 3)).reshape(-1, 3) @ turn
        xx, yy, zz, yz, xz, xy = (-self._lmp.get_thermo(k) / LAMMPS_BAR for k in ("pxx", "pyy", "pzz", "pyz", "pxz", "pxy"))
        stress = turn.T @ np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]) @ turn
        out: Atoms = atoms.copy()
        voigt = stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        out.calc = SinglePointCalculator(out, energy=self._lmp.get_thermo("pe"), forces=forces, stress=voigt)
        return out

    def relaxation(self, atoms: Atoms, pieces: Sequence[int]) -> list[Atoms]:
        """Structures along a minimisation at fixed cell, after so many more iterations each (conjugate gradients)."""
        turn = self._load(atoms)
        path = []
        for n in pieces:
            self._run(f"minimize 0.0 1e-4 {n} {20 * n}")
            path.append(self._positions(atoms, turn))
        return path

    def dynamics(self, atoms: Atoms, kelvin: float, frames: int, every: int, seed: int, langevin: bool) -> list[Atoms]:
        """Structures along molecular dynamics of 1 fs steps, one every so many steps.

        Args:
            atoms: where it starts; twice the temperature in velocities, as half of it becomes potential energy.
            kelvin: K.
            frames: how many structures.
            every: steps between them.
            seed: of the velocities and of the thermostat.
            langevin: keep the temperature by friction and noise; otherwise the energy is constant.
        """
        turn = self._load(atoms)
        self._run(f"velocity all create {2 * kelvin} {seed} mom yes rot no dist gaussian", "timestep 0.001", "fix 1 all nve")
        if langevin:
            self._run(f"fix 2 all langevin {kelvin} {kelvin} 0.1 {seed}")
        path = []
        for _ in range(frames):
            self._run(f"run {every} post no")
            path.append(self._positions(atoms, turn))
        return path

    def _load(self, atoms: Atoms) -> NDArray[np.float64]:
        """Start over with these atoms; returns Q, (3, 3), with cell = (cell of LAMMPS) Q."""
        check_geometry(atoms)  # LAMMPS would take an atom that is nowhere
        if atoms.cell.rank < 3 or not atoms.pbc.all() or atoms.cell.handedness != 1:
            raise UserError("the reference potential needs a right-handed cell, periodic in three directions")
        elements = sorted(set(atoms.get_chemical_symbols()))
        unknown = [e for e in elements if e not in self.source.names]
        if unknown:
            known = ", ".join(self.source.names)
            raise UserError(
                f"{self.file.name} holds {known}; it cannot label {', '.join(unknown)}; change hosts or substitutes"
            )
        cell, turn = atoms.cell.standard_form()
        (lx, _, _), (xy, ly, _), (xz, yz, lz) = cell.array.tolist()
        self._run(
            "clear", "units metal", "atom_style atomic", "atom_modify map array sort 0 0", "boundary p p p", "box tilt large",
            f"region box prism 0 {lx!r} 0 {ly!r} 0 {lz!r} {xy!r} {xz!r} {yz!r} units box",
            f"create_box {len(elements)} box",
        )  # fmt: skip
        wrapped = atoms.copy()
        wrapped.wrap(eps=0.0)
        types = [elements.index(s) + 1 for s in atoms.get_chemical_symbols()]
        with _reported(self.file.name):
            ids = list(range(1, len(atoms) + 1))
            made = self._lmp.create_atoms(len(atoms), ids, types, (wrapped.positions @ turn.T).ravel().tolist())
        if made != len(atoms):
            raise UserError(f"LAMMPS took {made} of {len(atoms)} atoms; positions or cell are not finite")
        self._run(*(f"mass {k} {atomic_masses[atomic_numbers[e]]}" for k, e in enumerate(elements, 1)))
        names = " ".join(self.source.names[e] for e in elements)
        self._run(
            f"pair_style {self.source.style}", f"pair_coeff * * {self.file} {names}",
            "thermo_style custom step pe pxx pyy pzz pxy pxz pyz", "thermo_modify norm no lost error", "neighbor 1.0 bin",
        )  # fmt: skip
        return np.asarray(turn, dtype=np.float64)

    def _positions(self, like: Atoms, turn: NDArray[np.float64]) -> Atoms:
        out: Atoms = like.copy()
        out.positions = np.array(self._lmp.gather_atoms("x", 1, 3)).reshape(-1, 3) @ turn
        return out

    def _run(self, *commands: str) -> None:
        with _reported(self.file.name):
            for command in commands:
                self._lmp.command(command)


@contextmanager
def _reported(potential: str) -> Iterator[None]:
    """Turn LAMMPS' complaints, which are bare exceptions, into one line."""
    try:
        yield
    except Exception as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"LAMMPS refused to label with {potential}: {line}; change hosts, substitutes or rattling") from error
