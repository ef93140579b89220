"""What a source of structures says of itself, and what it hands over."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from numpy.typing import NDArray


class Record(NamedTuple):
    """One structure; labels are the results of its single-point calculator, and a label that is not there is not known."""

    atoms: Atoms
    trajectory: str | None = None
    """The run that it is a frame of, or the material; None where the file does not say."""
    targets: Mapping[str, float | NDArray[np.float64]] = {}
    """Other properties of the whole structure, in the file's own units: one number, 3 or 9."""
    atom_targets: Mapping[str, NDArray[np.float64]] = {}
    """The same of its atoms, (N,), (N, 3) or (N, 9)."""


@dataclasses.dataclass(frozen=True)
class Source:
    """One format. Lengths are Å in all of them; energies are those of the whole structure, never per atom."""

    name: str
    what: str
    read: Callable[[Path], Iterator[Record]]
    """Streams the file: what is in memory does not grow with it, unless ``what`` says so."""
    energy: float = 1.0
    """eV in the file's unit of energy; forces are in that unit per Å."""
    stress: float = 1.0
    """eV/Å³ in the file's unit; negative where the file counts compression as positive, which is not ASE's sign."""
    doubt: str = ""
    """What of these factors nobody has verified; ``tfdeploy data convert`` says so."""

    def records(self, path: Path) -> Iterator[Record]:
        """The structures of a file with labels in eV, eV/Å and eV/Å³ of ASE's sign."""
        factors = {"energy": self.energy, "forces": self.energy, "stress": self.stress}
        for record in self.read(path):
            if record.atoms.calc is not None and (self.energy != 1.0 or self.stress != 1.0):
                results = record.atoms.calc.results
                for label in factors.keys() & results.keys():
                    results[label] = results[label] * factors[label]
            yield record


def labelled(atoms: Atoms, **labels: object) -> Atoms:
    """The same atoms with those labels that are not None."""
    atoms.calc = SinglePointCalculator(atoms, **{name: value for name, value in labels.items() if value is not None})
    return atoms
