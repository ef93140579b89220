"""The uncertainty of each atom's energy where LAMMPS' own commands find it: to dump, to reduce and to stop by."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import write

from tests.lammps import cases
from tests.lammps.harness import Array, Host, expected, frames, lmp
from tests.tiny import TINY, tiny_model
from triforces_deploy import artifact, checkpoint
from triforces_deploy.export.exporting import ExportOptions, export
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.training.uncertainty import with_spread

LINES = """
fix sigma all pair {every} {style} uncertainty 0
compute worst all reduce max f_sigma
variable worst equal c_worst
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a covariance of random weights, and with repulsion laid over its nearest neighbours."""
    folder, model = tmp_path_factory.mktemp("told"), tiny_model(dataclasses.replace(TINY, zbl=False))
    n = model.head.n_features
    spread = 0.01 * torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    checkpoint.save(folder / "told.ckpt", with_spread(model, spread), {"uncertainty": "calibrated on nothing"})
    export(folder / "told.ckpt", folder / "told.pt", ExportOptions(backends=(), zbl="1.6,2.4"))
    return folder / "told.pt"


def wanted(told: Path, atoms: Atoms) -> Array:
    potential = artifact.load(told)
    found = potential.evaluate(graph_from_atoms(atoms, potential.facts.cutoff)).uncertainty
    assert found is not None
    assert float(found.max()) > 1.05 * float(found.min()) > 0
    return found.numpy()


def gathered(host: Host) -> Array:
    return np.array(host.lmp.gather("f_sigma", 1, 1)[: host.lmp.get_natoms()])


@pytest.mark.parametrize("name", ["triclinic", "slab", "below_cutoff", "lonely"])
def test_fix_pair_finds_it(host: Host, told: Path, name: str) -> None:
    atoms = cases.ALL[name]()
    host.load(atoms)
    host(f"pair_style triforces {told}\npair_coeff * * Si Ge" + LINES.format(every=1, style="triforces"))
    host("thermo_style custom step pe v_worst\nrun 0")
    potential = artifact.load(told)
    found = potential.evaluate(graph_from_atoms(atoms, potential.facts.cutoff)).uncertainty
    assert found is not None
    np.testing.assert_allclose(gathered(host), found.numpy(), rtol=1e-9)
    assert host.lmp.extract_variable("worst") == pytest.approx(float(found.max()), rel=1e-9)


def test_it_follows_the_atoms_and_is_zero_for_others(host: Host, told: Path) -> None:
    """In hybrid, along a trajectory, through rebuilds of the neighbour list."""
    ours = cases.orthogonal()
    argon = Atoms("Ar2", positions=[[1.0, 1.2, 1.4], [5.0, 6.0, 7.1]], cell=ours.cell, pbc=True)
    both = argon[:1] + ours + argon[1:]
    elements = ("Ar", "Ge", "Si")
    host.load(both, elements)
    host(f"pair_style hybrid triforces {told} lj/cut 2.0")
    host("pair_coeff * * triforces NULL Ge Si\npair_coeff 1 * lj/cut 0.0 1.0")
    host(LINES.format(every=5, style="triforces"))
    host("velocity all create 2000 7 loop all\nfix 1 all nve\nneigh_modify every 1 delay 0 check yes\nrun 10")
    now, found = host.atoms(elements), gathered(host)
    is_argon = np.array(now.get_chemical_symbols()) == "Ar"
    assert np.array_equal(found[is_argon], np.zeros(2))
    np.testing.assert_allclose(found[~is_argon], wanted(told, now[~is_argon]), rtol=1e-8)
    host("unfix 1")


def test_two_ranks_dump_the_same_and_overlay_the_same(told: Path, tmp_path: Path) -> None:
    atoms = cases.orthogonal()
    write(tmp_path / "a.data", atoms, format="lammps-data", specorder=["Si", "Ge"], units="metal")
    script = f"""
units metal
read_data a.data
mass 1 28.085
mass 2 72.63
neighbor 1.0 bin
pair_style triforces {told}
pair_coeff * * Si Ge
velocity all create 1000 7 loop all
fix 1 all nve
{LINES.format(every=2, style="triforces")}
dump 1 all custom 2 a.dump id x y z f_sigma fx fy fz
dump_modify 1 sort id format float %.16g
run 4
"""
    ended = lmp(script, tmp_path, ranks=2)
    assert ended.code == 0, ended.text
    assert "uncertainty: of each atom's energy, from the last layer; calibrated on nothing" in ended.text
    for frame in frames(tmp_path / "a.dump"):
        atoms.positions = frame[:, 1:4]
        np.testing.assert_allclose(frame[:, 4], wanted(told, atoms), rtol=1e-8)
        np.testing.assert_allclose(frame[:, 5:], expected(atoms, artifact.load(told)).forces, rtol=0, atol=1e-8)
    assert "short range: ZBL overlaid, alone below / gone beyond (A): Si-Si 1.6/2.4" in ended.text
    assert min(atoms.get_all_distances(mic=True)[np.triu_indices(len(atoms), 1)]) < 2.3


def test_fix_halt_stops_when_it_grows(host: Host, told: Path) -> None:
    """A crystal that gets hot; the run ends once the bound is passed, not before."""

    def start() -> None:
        host.load(cases.orthogonal())
        host(f"pair_style triforces {told}\npair_coeff * * Si Ge" + LINES.format(every=1, style="triforces"))
        host("velocity all create 9000 3 loop all\nfix 1 all nve\nthermo_style custom step v_worst\nthermo 1")

    start()
    worst = []
    for _ in range(12):
        host("run 1 post no")
        worst.append(host.lmp.extract_variable("worst"))
    bound = 0.5 * (worst[0] + max(worst))
    first = next(k for k, value in enumerate(worst) if value > bound) + 1
    start()
    host(f"fix halt all halt 1 v_worst > {bound!r} error continue\nrun 12 post no")
    assert host.lmp.extract_global("ntimestep") == first
    assert 1 < first < 12


def test_a_potential_without_says_what_to_do(host: Host, tiny_artifact: Path) -> None:
    host.load(cases.triclinic())
    host(f"pair_style triforces {tiny_artifact}\npair_coeff * * Si Ge")
    with pytest.raises(Exception, match="does not tell its uncertainty; run 'tfdeploy uncertainty'"):
        host("fix sigma all pair 1 triforces uncertainty 0")
