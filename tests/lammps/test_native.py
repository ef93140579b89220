"""Any LAMMPS with ML-IAP's Python coupling, plain or Kokkos, against ASE: ``pytest -m native --lmp PROGRAM``."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write

from tests.lammps import cases
from tests.lammps.harness import BIN, Array, Ended, expected, frames, run
from tests.tiny import TINY, tiny_model
from triforces_deploy import artifact, checkpoint
from triforces_deploy.export.exporting import ExportOptions, export
from triforces_deploy.lammps_plugin.doctor import ranks as doctor
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.potential import Potential
from triforces_deploy.units import LAMMPS_BAR

pytestmark = pytest.mark.native

SYSTEM = """
clear
units metal
atom_style atomic
boundary {boundary}
comm_style {comm}
newton on
read_data {name}.data
mass 1 28.085
mass 2 72.63
neighbor 1.0 bin
neigh_modify every 1 delay 0 check yes
pair_style mliap unified {artifact} {ghosts}
pair_coeff * * Si Ge
compute e all pe/atom
thermo 1
compute v all pressure NULL virial
thermo_style custom step pe c_v[1] c_v[2] c_v[3] c_v[4] c_v[5] c_v[6] vol
thermo_modify format float %.16g norm no
dump 1 all custom 1 {name}.dump id type x y z fx fy fz c_e
dump_modify 1 sort id format float %.16g
{before}
run {steps}
"""
MOVE = "velocity all create 2000 7 loop all dist gaussian\nfix 1 all nve"
SYSTEMS = {
    "orthogonal": ("p p p", MOVE, 6),
    "triclinic": ("p p p", MOVE, 6),
    "slab": ("p p f", MOVE, 6),
    "below_cutoff": ("p p p", MOVE, 6),
    "far_apart": ("p p p", "", 0),
    "lonely": ("p p p", "", 0),
}


@dataclasses.dataclass(frozen=True)
class Program:
    """The LAMMPS under test."""

    path: Path
    options: tuple[str, ...]

    def __call__(self, script: str, folder: Path, ranks: int = 1) -> Ended:
        (folder / "in.test").write_text(script)
        mpirun = doctor.launcher(str(self.path))
        assert ranks == 1 or mpirun is not None, "no mpirun beside the program or on PATH"
        command = [str(self.path), "-in", "in.test", "-log", "none", *self.options]
        # A Python inside a program looks for its environment by the first python3 on PATH.
        env = {"PATH": f"{BIN}:/usr/bin:/bin", "VIRTUAL_ENV": str(BIN.parent)}
        return run([str(mpirun), "-np", str(ranks), *command] if ranks > 1 else command, folder, 1, env, timeout=280)


@pytest.fixture(scope="session")
def program(request: pytest.FixtureRequest) -> Program:
    options = shlex.split(request.config.getoption("--lmp-args"))
    return Program(Path(request.config.getoption("--lmp")).resolve(), tuple(options))


def trajectory(
    program: Program, file: Path, name: str, folder: Path, ranks: int = 1, comm: str = "brick", ghosts: int = 0
) -> tuple[list[Atoms], list[Array], Array, str]:
    """Structures, (forces, energies) and (energy, six virials in eV) of each step of one system."""
    boundary, before, steps = SYSTEMS[name]
    atoms = cases.ALL[name]()
    write(folder / f"{name}.data", atoms, format="lammps-data", specorder=["Si", "Ge"], units="metal")
    ended = program(
        SYSTEM.format(name=name, boundary=boundary, before=before, steps=steps, artifact=file, comm=comm, ghosts=ghosts),
        folder,
        ranks,
    )
    assert ended.code == 0, ended.text
    table = ended.text.split("   Step ")[1].split("Loop time")[0]
    thermo = np.array([line.split() for line in table.splitlines()[1:] if line.split()[0].isdigit()], dtype=float)
    seen = []
    found = frames(folder / f"{name}.dump")
    for frame in found:
        moved = atoms.copy()
        moved.positions = frame[:, 2:5]
        moved.symbols = [("Si", "Ge")[int(kind) - 1] for kind in frame[:, 1]]
        seen.append(moved)
    virial = thermo[:, 2:8] * thermo[:, 8, None] / LAMMPS_BAR
    return (
        seen,
        [frame[:, 5:9] for frame in found],
        np.concatenate([thermo[:, 1, None], virial], axis=1),
        ended.text,
    )


def lammps_virial(atoms: Atoms, potential: Potential) -> Array:
    """xx, yy, zz, xy, xz, yz as LAMMPS forms them, −Σ r_a f_b for a ≤ b; unsymmetric unless the model is equivariant."""
    graph = graph_from_atoms(atoms, potential.facts.cutoff)
    full = -(graph.edge_vector.T @ potential.evaluate(graph).edge_forces).numpy()
    return np.array([full[a, b] for a, b in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))])


def check_all(found: tuple[list[Atoms], list[Array], Array, str], file: Path) -> None:
    """Every step against our own evaluation of the same positions, 1e-10 of the largest value."""
    potential = artifact.load(file)
    structures, per_atom, thermo, _ = found
    assert len(structures) == len(thermo)
    for atoms, values, line in zip(structures, per_atom, thermo, strict=True):
        wanted = expected(atoms, potential)
        scale = max(abs(wanted.forces).max(), 1e-3)
        np.testing.assert_allclose(values[:, :3], wanted.forces, rtol=0, atol=1e-10 * scale)
        np.testing.assert_allclose(values[:, 3], wanted.energies, rtol=1e-10, atol=1e-10)
        assert line[0] == pytest.approx(wanted.energy, rel=1e-10)
        virial = lammps_virial(atoms, potential)
        np.testing.assert_allclose(line[1:], virial, rtol=0, atol=1e-10 * max(abs(virial).max(), 1e-3))


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("name", SYSTEMS)
def test_every_step_is_that_of_ase(program: Program, name: str, ranks: int, tiny_artifact: Path, tmp_path: Path) -> None:
    found = trajectory(program, tiny_artifact, name, tmp_path, ranks)
    check_all(found, tiny_artifact)
    text = found[-1]
    assert text.count("TriForces potential in LAMMPS' own ML-IAP coupling") == 1
    assert "4 times forward and backward" in text if ranks > 1 else "folded onto their owners" in text


def test_tiled_ranks(program: Program, tiny_artifact: Path, tmp_path: Path) -> None:
    check_all(trajectory(program, tiny_artifact, "slab", tmp_path, 3, comm="tiled"), tiny_artifact)


@pytest.mark.parametrize("ranks", [1, 2])
def test_neighbours_of_ghosts_do_no_harm(program: Program, ranks: int, tiny_artifact: Path, tmp_path: Path) -> None:
    check_all(trajectory(program, tiny_artifact, "orthogonal", tmp_path, ranks, ghosts=1), tiny_artifact)


def test_single_layer_with_frozen_composition(program: Program, tmp_path: Path) -> None:
    config = dataclasses.replace(
        TINY, backbone=dataclasses.replace(TINY.backbone, options={**TINY.backbone.options, "n_layers": 1})
    )
    checkpoint.save(tmp_path / "one.ckpt", tiny_model(config), {})
    export(tmp_path / "one.ckpt", tmp_path / "one.pt", ExportOptions(backends=(), composition="Si=0.7,Ge=0.3"))
    check_all(trajectory(program, tmp_path / "one.pt", "triclinic", tmp_path, 2), tmp_path / "one.pt")


def test_other_styles_and_types(program: Program, tiny_artifact: Path, tmp_path: Path) -> None:
    """Argon of another style among ours, and a second style on top: forces add up, argon has none of ours."""
    ours = cases.orthogonal()
    argon = Atoms("Ar2", positions=[[1.0, 1.2, 1.4], [5.0, 6.0, 7.1]], cell=ours.cell, pbc=True)
    both = argon[:1] + ours + argon[1:]
    write(tmp_path / "both.data", both, format="lammps-data", specorder=["Ar", "Si", "Ge"], units="metal")
    ended = program(
        f"units metal\nboundary p p p\nnewton on\nread_data both.data\nmass 1 39.9\nmass 2 28.085\nmass 3 72.63\n"
        f"pair_style hybrid/overlay mliap unified {tiny_artifact} 0 zero 3.0 full\n"
        "pair_coeff * * mliap NULL Si Ge\npair_coeff * * zero\ncompute e all pe/atom\n"
        "dump 1 all custom 1 out.dump id x y z fx fy fz c_e\ndump_modify 1 sort id format float %.16g\nrun 0\n",
        tmp_path,
    )
    assert ended.code == 0, ended.text
    (frame,) = frames(tmp_path / "out.dump")
    wanted = expected(ours, artifact.load(tiny_artifact))
    np.testing.assert_allclose(frame[1:-1, 4:7], wanted.forces, rtol=0, atol=1e-9)
    np.testing.assert_allclose(frame[1:-1, 7], wanted.energies, rtol=0, atol=1e-9)
    np.testing.assert_allclose(frame[[0, -1], 4:8], 0, atol=0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("units real", "the potential is in units metal but the run is in real; write 'units metal'"),
        ("mass 1 72.63", "type 1 is Si in pair_coeff but its mass 72.63 is that of Ge"),
    ],
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_mistakes_are_one_line(
    program: Program, line: str, message: str, ranks: int, tiny_artifact: Path, tmp_path: Path
) -> None:
    write(tmp_path / "a.data", cases.orthogonal(), format="lammps-data", specorder=["Si", "Ge"], units="metal")
    before, after = (line, "") if line.startswith("units") else ("units metal", line)
    ended = program(
        f"{before}\nnewton on\nread_data a.data\nmass 1 28.085\nmass 2 72.63\n{after}\n"
        f"pair_style mliap unified {tiny_artifact} 0\npair_coeff * * Si Ge\nrun 0\n",
        tmp_path,
        ranks,
    )
    assert ended.code != 0
    assert f"ERROR: {message}" in ended.text
    assert "Traceback" not in ended.text
    assert ended.seconds < 60
