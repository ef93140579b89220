"""A host, a size and a list of wishes become a supercell with defects, and a record of it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from triforces_deploy.defects.crystals import finished, supercell_of
from triforces_deploy.defects.edits import CLOSEST, Edit
from triforces_deploy.defects.extended import Extended
from triforces_deploy.defects.hosts import crystal_of
from triforces_deploy.defects.placing import apply, check_distances, place
from triforces_deploy.defects.requests import parse
from triforces_deploy.defects.surroundings import crowding
from triforces_deploy.errors import UserError


@dataclasses.dataclass(frozen=True)
class Made:
    """One line of the summary."""

    asked: str
    """As the user wrote it."""
    defect: str
    made: int


@dataclasses.dataclass(frozen=True)
class Supercell:
    """A finished supercell."""

    atoms: Atoms
    perfect: int
    """Atoms before the point defects."""
    extended: str
    """Grain boundary or dislocations; '' for none."""
    made: tuple[Made, ...]
    edits: tuple[Edit, ...]
    seed: int

    def summary(self) -> str:
        """The defects in one line, equal ones counted."""
        words = [self.extended] * bool(self.extended) + [f"{m.made} {m.defect}" for m in self.made if m.made]
        return ", ".join(words) or "no defects"

    def record(self) -> dict[str, object]:
        """What ``defects.json`` holds: positions and centres in Å, in the frame of the data file."""
        return {
            "host": self.atoms.info["host"],
            "extended": self.extended,
            "seed": self.seed,
            "atoms": len(self.atoms),
            "atoms_of_the_perfect_crystal": self.perfect,
            "composition": composition(self.atoms),
            "cell": self.atoms.cell.array.tolist(),
            "made": [dataclasses.asdict(m) for m in self.made],
            "defects": [
                {
                    "defect": edit.label,
                    "centre": edit.centre.tolist(),
                    "removed": len(edit.removed),
                    "changed": len(edit.changed),
                    "added": [{"element": chemical_symbols[n], "position": p.tolist()} for n, p in edit.added],
                }
                for edit in self.edits
            ],
        }


def defective(
    host: str,
    n_atoms: int,
    wishes: Sequence[str] = (),
    *,
    matrix: Sequence[int] | None = None,
    extended: Extended | None = None,
    apart: float = 0.0,
    seed: int = 0,
    report: Callable[[str], None] = lambda _: None,
) -> Supercell:
    """A supercell with so many defects of each kind at random places; the same arguments give the same atoms.

    Args:
        host: see :func:`triforces_deploy.defects.crystals.supercell_of`.
        n_atoms: the wanted number of atoms of the perfect crystal.
        wishes: each ``NAME:AMOUNT``, as `tfdeploy defect --help` describes them.
        matrix: three or nine integers, in place of ``n_atoms``.
        extended: a grain boundary or dislocations that the crystal has before the others are put in.
        apart: Å. Smallest distance between the centres of defects.
        seed: of the places, and of a random alloy.
        report: called with each stage.

    Raises:
        UserError: a host, a name or an amount that makes no sense, no room for all, or atoms too close in the end.
    """
    rng = np.random.default_rng(seed)
    if extended is None:
        perfect = supercell_of(host, n_atoms, rng, matrix)
    elif matrix is not None:
        raise UserError(f"a {extended.name} shapes the cell itself; leave the matrix out")
    else:
        crystal = crystal_of(host)
        perfect = finished(crystal, extended.build(crystal, n_atoms), rng)
    requests = parse(wishes, [chemical_symbols[n] for n in np.unique(perfect.numbers)])
    wanted = [(request.kind, request.count(perfect)) for request in requests]
    total = sum(count for _, count in wanted)
    if total > len(perfect):
        raise UserError(f"{total} defects in {len(perfect)} atoms are too many; use fewer, or a larger cell")
    report(f"placing {total} defects")
    # A void finds room among point defects with more difficulty than they find it around a void.
    order = sorted(range(len(wanted)), key=lambda n: -_size(wishes[n]))
    edits = place(perfect, [wanted[n] for n in order], rng, apart)
    atoms = apply(perfect, edits)
    if len(atoms) == 0:
        raise UserError("the defects take every atom away; use fewer, or a larger cell")
    report("checking distances")
    check_distances(atoms, crowding(perfect, CLOSEST)[0] if len(edits) else 0.0)
    made = [Made(wish, kind.name, count) for wish, (kind, count) in zip(wishes, wanted, strict=True)]
    atoms.info["seed"] = seed
    built = Supercell(atoms, len(perfect), extended.name if extended else "", tuple(made), tuple(edits), seed)
    atoms.info["defects"] = built.summary()
    return built


def composition(atoms: Atoms) -> dict[str, int]:
    """Element → number of atoms."""
    numbers, counts = np.unique(atoms.numbers, return_counts=True)
    return {chemical_symbols[n]: int(count) for n, count in zip(numbers, counts, strict=True)}


def labels(edits: Sequence[Edit]) -> dict[str, int]:
    """Label → how often, the most frequent first."""
    return dict(Counter(edit.label for edit in edits).most_common())


def _size(wish: str) -> int:
    """Extended defects first: voids, then complexes, pairs and interstitials, then what needs one atom only."""
    name = wish.partition(":")[0]
    return 2 if name.startswith("void") else 1 if "+" in name or name[0].isdigit() or "_i" in name or name[0].islower() else 0
