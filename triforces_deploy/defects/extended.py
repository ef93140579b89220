"""Crystals with grain boundaries or dislocations, periodic in three directions; point defects can be put in afterwards."""

from __future__ import annotations

import dataclasses

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from triforces_deploy.defects.crystals import check_size, multiple
from triforces_deploy.defects.hosts import Crystal
from triforces_deploy.defects.surroundings import Surroundings
from triforces_deploy.errors import UserError

MERGED = 0.7
"""Atoms of two grains closer than this, in nearest distances of the crystal, become one half-way."""
THINNEST = 10.0
"""Å. Least distance between the two boundaries."""

LINES = {
    ("diamond", "screw"): "DiamondGlideScrew",
    ("diamond", "60"): "DiamondGlide60Degree",
    ("diamond", "30-partial"): "DiamondGlide30degreePartial",
    ("diamond", "90-partial"): "DiamondGlide90degreePartial",
    ("fcc", "screw"): "FCCScrew110Dislocation",
    ("fcc", "edge"): "FCCEdge110Dislocation",
    ("bcc", "screw"): "BCCScrew111Dislocation",
    ("bcc", "edge"): "BCCEdge111Dislocation",
    ("bcc", "edge100"): "BCCEdge100Dislocation",
}
"""Structure and character → class of matscipy.dislocation."""


@dataclasses.dataclass(frozen=True)
class GrainBoundary:
    """Two symmetric tilt boundaries half a cell apart; the second grain is the mirror image of the first."""

    plane: tuple[int, int, int]
    """Miller indices of the boundary."""
    axis: tuple[int, int, int]
    """Tilt axis, in the plane."""

    @property
    def sigma(self) -> int:
        """One in so many lattice sites of a cubic crystal coincides: the odd part of h² + k² + l²."""
        square = int(np.dot(self.plane, self.plane)) // int(np.gcd.reduce(self.plane)) ** 2
        while square % 2 == 0:
            square //= 2
        return square

    @property
    def name(self) -> str:
        (h, k, l), (u, v, w) = self.plane, self.axis  # noqa: E741  Miller's letters
        return f"Σ{self.sigma} ({h} {k} {l})[{u} {v} {w}]"

    def build(self, crystal: Crystal, n_atoms: int) -> Atoms:
        """The bicrystal: x across the tilt axis, y along it, z across the boundaries at 0 and at half the cell.

        Raises:
            UserError: a crystal that is not cubic, an axis outside the plane, or a plane that is no boundary.
        """
        lengths, angles = crystal.cell.cell.lengths(), crystal.cell.cell.angles()
        if np.ptp(lengths) > 1e-3 * lengths[0] or np.abs(angles - 90).max() > 0.01:
            raise UserError(f"a grain boundary needs a cubic crystal given by its cubic cell; {crystal.name} is not")
        if not any(self.axis) or np.dot(self.plane, self.axis) != 0:
            raise UserError(f"the tilt axis {self.axis} does not lie in the plane {self.plane}; their product must be zero")
        if self.sigma == 1:
            raise UserError(f"the plane {self.plane} mirrors a cubic crystal into itself; expected one such as 2,1,0 or 3,1,0")
        grain = multiple(crystal.primitive, self._edges(crystal))
        across, along, height = grain.cell.lengths()
        edge = (check_size(n_atoms) * grain.get_volume() / len(grain)) ** (1 / 3)
        i, j = (max(1, round(edge / length)) for length in (across, along))
        k = max(1, round(n_atoms / (2 * len(grain) * i * j)), int(np.ceil(THINNEST / height)))
        thin = grain.repeat((1, 1, max(2, int(np.ceil(THINNEST / height)))))
        grain.positions[:, 2] -= min(_planes(grain), key=lambda offset: _disorder(thin, offset))
        grain.wrap(eps=1e-9)
        return _bicrystal(grain.repeat((i, j, k)))

    def _edges(self, crystal: Crystal) -> NDArray[np.int64]:
        """The shortest lattice vectors along plane × axis, axis and plane normal, in primitive ones; (3, 3)."""
        directions = np.array([np.cross(self.axis, self.plane), self.axis, self.plane])
        inside = np.rint(directions @ crystal.cell.cell.array @ np.linalg.inv(crystal.primitive.cell.array)).astype(np.int64)
        edges: NDArray[np.int64] = inside // np.gcd.reduce(inside, axis=1)[:, None]
        return edges


def _planes(grain: Atoms) -> list[float]:
    """Heights in Å at which a grain can be mirrored: its layers of atoms, and half-way between them."""
    height = grain.cell.lengths()[2]
    layers = np.unique(np.round(grain.positions[:, 2] % height, 6) % height)
    ends = np.append(layers[1:], height + layers[0])
    return [float(z) for pair in zip(layers, (layers + ends) / 2, strict=True) for z in pair]


def _disorder(grain: Atoms, offset: float) -> tuple[int, float]:
    """Atoms of the bicrystal without the neighbours of the crystal, then the volume that it takes more; less is better."""
    shifted = grain.copy()
    shifted.positions[:, 2] -= offset
    shifted.wrap(eps=1e-9)
    around = Surroundings(grain, 6.0)
    radius = 1.2 * float(np.linalg.norm(around.around(0, 6.0)[1][0]))
    atoms = _bicrystal(shifted)
    right = np.unique(around.count(radius))
    wrong = int((~np.isin(Surroundings(atoms, radius).count(radius), right)).sum())
    return wrong, round(abs(2 * len(grain) / len(atoms) - 1), 9)


def _bicrystal(grain: Atoms) -> Atoms:
    """A grain, its mirror image on top of it, and the mirror planes once each."""
    height = grain.cell.lengths()[2]
    z = grain.positions[:, 2]
    flat = z < 1e-6
    up = np.array([0, 0, height])
    mirrored = grain.positions[~flat] * [1, 1, -1] + 2 * up
    positions = np.vstack([grain.positions, grain.positions[flat] + up, mirrored])
    numbers = np.concatenate([grain.numbers, grain.numbers[flat], grain.numbers[~flat]])
    atoms = Atoms(numbers=numbers, positions=positions, cell=grain.cell.array * [[1], [1], [2]], pbc=True)
    _, bonds = Surroundings(grain, 6.0).around(0, 6.0)
    return _merged(atoms, MERGED * float(np.linalg.norm(bonds[0])))


def _merged(atoms: Atoms, closest: float) -> Atoms:
    """Pairs of atoms closer than so many Å as one atom half-way; every atom is merged once at most."""
    i, j, distance = Surroundings(atoms, closest).closest(closest)
    cell, positions = atoms.cell.array, atoms.positions.copy()
    keep, touched = np.ones(len(atoms), dtype=bool), np.zeros(len(atoms), dtype=bool)
    for m in np.argsort(distance, kind="stable"):
        one, other = sorted((int(i[m]), int(j[m])))
        if touched[one] or touched[other]:
            continue
        touched[[one, other]] = True
        way = positions[other] - positions[one]
        way -= np.rint(way @ np.linalg.inv(cell)) @ cell
        positions[one] += way / 2
        keep[other] = False
    merged = Atoms(numbers=atoms.numbers[keep], positions=positions[keep], cell=cell, pbc=True)
    merged.wrap(eps=1e-9)
    return merged


@dataclasses.dataclass(frozen=True)
class DislocationDipole:
    """Two dislocations of opposite Burgers vector, in the quadrupolar arrangement that keeps the cell free of stress."""

    character: str
    """'screw', 'edge', '60' …; see ``LINES``."""
    elastic: tuple[float, float, float]
    """GPa. C11, C12, C44: they shape the displacement field from which minimisation starts."""

    @property
    def name(self) -> str:
        return f"{self.character} dislocation dipole"

    def build(self, crystal: Crystal, n_atoms: int) -> Atoms:
        """The lines run along z, about as far apart as the cell is thick.

        Raises:
            UserError: a structure or a character that matscipy does not know, elastic constants of no stable crystal, or
                matscipy is not installed.
        """
        structure = "diamond" if crystal.structure == "zincblende" else crystal.structure
        known = [character for kind, character in LINES if kind == structure]
        if self.character not in known:
            there = f"expected {', '.join(known)}" if known else "expected a diamond, zincblende, fcc or bcc crystal"
            raise UserError(f"no dislocation '{self.character}' in {crystal.name}; {there}")
        c11, c12, c44 = self.elastic
        if not (c44 > 0 and c11 > abs(c12) and c11 + 2 * c12 > 0):
            raise UserError(f"elastic constants {c11:g}, {c12:g}, {c44:g} GPa are of no stable crystal; expected C11, C12, C44")
        try:
            from matscipy import dislocation
        except ImportError as error:
            raise UserError("dislocations need matscipy; pip install 'triforces-deploy[dislocations]'") from error
        line = vars(dislocation)[LINES[structure, self.character]]
        quadrupole = dislocation.CubicCrystalDislocationQuadrupole(line, crystal.cell, c11, c12, c44)
        volume = check_size(n_atoms) * crystal.cell.get_volume() / len(crystal.cell)
        apart = (volume / 2.8) ** (1 / 3)  # the cell is about 2.8 distances² large across the lines
        steps = max(4, round(apart / quadrupole.glide_distance))
        options = {"verbose": "off", "method": "adsl", "self_consistent": False}
        for separation in range(steps, steps + 4):  # some make a cell that is no multiple of the crystal's
            bulk, slab = quadrupole.build_quadrupole(glide_separation=separation, **options)
            cell = _closed(bulk, slab)
            if cell is not None:
                break
        else:
            raise UserError(
                f"no periodic cell holds a {self.name} of {crystal.name} at about {n_atoms} atoms; try another size"
            )
        atoms = Atoms(numbers=slab.numbers, positions=slab.positions, cell=cell[[1, 0, 2]], pbc=True)  # right-handed
        return multiple(atoms, np.diag([1, 1, max(1, round(n_atoms / len(atoms)))]))


def _closed(bulk: Atoms, slab: Atoms) -> NDArray[np.float64] | None:
    """The cell in which displaced atoms continue over its faces, (3, 3) Å; None if the undisplaced ones do not.

    The sum over periodic images converges but for a linear term, by which displacements on opposite faces differ. It is the
    same for all bonds over a face; the cell vector takes it up.
    """
    from ase.neighborlist import neighbor_list

    old = slab.cell.array
    moved = slab.positions - bulk.positions
    moved -= np.rint(moved @ np.linalg.inv(old)) @ old
    around = Surroundings(bulk, 6.0)
    bond = 1.1 * float(np.linalg.norm(around.around(0, 6.0)[1][0]))
    if np.ptp(around.count(bond)):
        return None
    i, j, over = neighbor_list("ijS", bulk, bond)
    cell: NDArray[np.float64] = old.copy()
    for axis in (0, 1):
        across = (over[:, axis] == 1) & (over[:, 1 - axis] == 0)
        cell[axis] -= np.median(moved[j[across]] - moved[i[across]], axis=0)
    return cell


Extended = GrainBoundary | DislocationDipole


def parse_extended(boundary: str | None, character: str | None, elastic: str | None) -> Extended | None:
    """What the command line says of them, None for nothing.

    Args:
        boundary: plane, then tilt axis: '2,1,0/0,0,1'.
        character: of a dislocation.
        elastic: 'C11,C12,C44' in GPa, with a dislocation.

    Raises:
        UserError: anything else, or both.
    """
    if boundary is not None and character is not None:
        raise UserError("a crystal gets either --boundary or --dislocation; leave one out")
    if boundary is not None:
        return _boundary(boundary)
    if character is None:
        return None
    if elastic is None:
        raise UserError("--dislocation needs --elastic C11,C12,C44 in GPa, e.g. 166,64,80 for silicon")
    return DislocationDipole(character, _three(elastic))


def _boundary(text: str) -> GrainBoundary:
    try:
        plane, axis = (tuple(int(word) for word in part.split(",")) for part in text.split("/"))
        (h, k, l), (u, v, w) = plane, axis  # noqa: E741  Miller's letters
    except ValueError as error:
        raise UserError(f"--boundary {text}: expected PLANE/AXIS in whole numbers, such as 2,1,0/0,0,1") from error
    if not (h or k or l):
        raise UserError(f"--boundary {text}: the plane 0,0,0 is none")
    return GrainBoundary((h, k, l), (u, v, w))


def _three(text: str) -> tuple[float, float, float]:
    try:
        c11, c12, c44 = (float(word) for word in text.split(","))
    except ValueError as error:
        raise UserError(f"--elastic {text}: expected C11,C12,C44 in GPa, e.g. 166,64,80 for silicon") from error
    return c11, c12, c44
