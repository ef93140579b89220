"""The same numbers on any number of ranks, however LAMMPS cuts the box; and not without the exchange."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from ase.io import write

from tests.lammps import cases
from tests.lammps.harness import Array, Environment, expected, frames, lmp
from triforces_deploy.artifact import load
from triforces_deploy.export.exporting import ExportOptions, export
from triforces_deploy.potential import Potential

SYSTEM = """
clear
units metal
atom_style atomic
atom_modify sort 2 0.0
boundary {boundary}
comm_style {comm}
read_data {name}.data
mass 1 28.085
mass 2 72.63
neighbor 1.0 bin
neigh_modify every 1 delay 0 check yes
pair_style triforces {artifact}
pair_coeff * * Si Ge
compute e all pe/atom
compute v all stress/atom NULL pair
thermo 1
thermo_style custom step pe press pxx pyy pzz pxy pxz pyz
thermo_modify format float %.16g norm no
dump 1 all custom 1 {name}.dump id x y z fx fy fz c_e c_v[*] proc
dump_modify 1 sort id format float %.16g
{before}
run {steps}
"""

MOVE = "velocity all create 2000 7 loop all dist gaussian\nfix 1 all nve"
BALANCE = MOVE + "\nbalance 0.9 rcb\nfix 2 all balance 3 0.9 rcb"
THROWN = "velocity all create 300 7 loop all dist gaussian\nvelocity all set 700 NULL NULL sum yes units box\nfix 1 all nve"
SYSTEMS = {
    # name of the structure: (boundary, communication, steps, commands before the run)
    "orthogonal": ("p p p", "brick", 6, MOVE),
    "triclinic": ("p p p", "brick", 6, MOVE),
    "slab": ("p p f", "tiled", 6, BALANCE),
    "below_cutoff": ("p p p", "brick", 6, MOVE),
    "far_apart": ("p p p", "brick", 1, ""),
    "lonely": ("p p p", "brick", 1, ""),
    # 0.7 Å a step: once around the box, across all ranks.
    "travelling": ("p p p", "brick", 60, THROWN),
}
CASES = {**cases.ALL, "travelling": cases.travelling}


def script_of(folder: Path, artifact: Path, names: Sequence[str]) -> str:
    script = ""
    for name in names:
        boundary, comm, steps, before = SYSTEMS[name]
        write(folder / f"{name}.data", CASES[name](), format="lammps-data", specorder=["Si", "Ge"], units="metal")
        script += SYSTEM.format(name=name, boundary=boundary, comm=comm, steps=steps, before=before, artifact=artifact)
    return script


def simulate(
    folder: Path, artifact: Path, ranks: int, names: Sequence[str] = tuple(SYSTEMS), env: Environment | None = None
) -> tuple[dict[str, Array], str]:
    """Several systems in one go: the frames of each dump (steps, atoms, columns) and each system's thermo table."""
    script = script_of(folder, artifact, names)
    ended = lmp(script, folder, ranks, env, timeout=280)
    assert ended.code == 0, ended.text
    tables = ended.text.split("   Step ")[1:]
    numbers = {}
    for name, table in zip(names, tables, strict=True):
        rows = [line.split() for line in table.split("Loop time")[0].splitlines()[1:]]
        numbers[name + " thermo"] = np.array([row for row in rows if row and row[0].isdigit()], dtype=float)
        numbers[name] = np.stack(frames(folder / f"{name}.dump"))
    return numbers, ended.text


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny_artifact: Path) -> dict[str, Array]:
    return simulate(tmp_path_factory.mktemp("alone"), tiny_artifact, 1)[0]


def deviations(found: dict[str, Array], wanted: dict[str, Array]) -> dict[str, float]:
    """Largest difference of each quantity at any step over its largest value at that step."""
    columns = {"x": slice(1, 4), "f": slice(4, 7), "e": slice(7, 8), "v": slice(8, 14)}
    result = {}
    for name in [name for name in SYSTEMS if name in found]:
        for key, part in columns.items():
            a, b = found[name][:, :, part], wanted[name][:, :, part]
            largest = np.abs(b).max(axis=(1, 2))
            result[f"{name} {key}"] = float((np.abs(a - b).max(axis=(1, 2)) / np.maximum(largest, 1e-6)).max())
        a, b = found[name + " thermo"][:, 1:], wanted[name + " thermo"][:, 1:]
        result[f"{name} energy"] = float((np.abs(a - b)[:, 0] / np.abs(b)[:, 0]).max())
        largest = np.abs(b[:, 1:]).max(axis=1)
        result[f"{name} pressure"] = float((np.abs(a - b)[:, 1:].max(axis=1) / np.maximum(largest, 1e-3)).max())
    return result


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ranks_do_not_matter(ranks: int, alone: dict[str, Array], tiny_artifact: Path, tmp_path: Path) -> None:
    found, text = simulate(tmp_path, tiny_artifact, ranks)
    worst = deviations(found, alone)
    assert max(worst.values()) <= 1e-10, worst
    assert f"MPI between {ranks} ranks, 4 times forward and backward" in text
    holders = [set(frame[:, -1].astype(int)) for frame in found["travelling"]]
    for rank in range(ranks):
        held = "".join("x" if rank in now else "-" for now in holders)
        assert re.search("x-+x|-x+-", held), f"rank {rank} was not empty and full in turn: {held}"
    check_exchanged(text, ranks)


def check_exchanged(text: str, ranks: int) -> None:
    """What travelled at the first step of each system is what the start-up block says, and what its figures mean."""
    predicted = re.findall(r"gets and gives back 16 \+ 16 \+ 16 \+ 16 float64 numbers: (\d+) to (\d+) bytes per rank", text)
    measured = re.findall(r"exchanged in the first evaluation: (\d+) to (\d+) bytes per rank", text)
    ghosts = re.findall(r"ghosts: (\d+) to (\d+) per rank", text)
    assert len(measured) == len(SYSTEMS)
    assert measured == predicted
    # Forward and backward, four exchanges, rows of 16 numbers of 8 bytes.
    assert measured == [tuple(str(2 * 4 * int(n) * 16 * 8) for n in pair) for pair in ghosts]
    assert [int(most) > 0 for _, most in measured].count(True) >= len(SYSTEMS) - 1


def test_ranks_share_the_cores(tiny_artifact: Path, tmp_path: Path) -> None:
    _, text = simulate(tmp_path, tiny_artifact, 2, ["lonely"], {"OMP_NUM_THREADS": None})
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert f"{share} torch thread{'s' if share > 1 else ''} on each of 2 ranks" in text


def test_one_rank_is_right(alone: dict[str, Array], tiny: Potential) -> None:
    """What the others are compared with is what we compute without LAMMPS."""
    for name in SYSTEMS:
        atoms = CASES[name]()
        atoms.positions = alone[name][-1, :, 1:4]
        np.testing.assert_allclose(alone[name][-1, :, 4:7], expected(atoms, tiny).forces, rtol=0, atol=1e-8)


SABOTAGE = """
import os
if os.readlink('/proc/self/exe').endswith('/lmp'):
    from triforces_deploy.lammps_plugin import halo, session
    moved = halo.Halo._moved
    def _moved(self, rows, adjoint):
        {body}
    halo.Halo._moved = _moved
"""


def test_without_the_exchange_it_is_wrong(alone: dict[str, Array], tiny_artifact: Path, tmp_path: Path) -> None:
    body = "moved(self, rows, adjoint); return rows.clone()"
    (tmp_path / "sitecustomize.py").write_text(SABOTAGE.format(body=body) + "    session.self_test = lambda *_: ''\n")
    worst = deviations(simulate(tmp_path, tiny_artifact, 2, ["orthogonal"], {"PYTHONPATH": str(tmp_path)})[0], alone)
    assert worst["orthogonal f"] > 1e-3
    assert worst["orthogonal energy"] > 1e-6


def test_a_wrong_exchange_is_refused_before_the_first_step(tiny_artifact: Path, tmp_path: Path) -> None:
    """Here columns beyond the first piece do not travel, which this model would not notice."""
    body = "out = moved(self, rows, adjoint); out[:, 64:] = rows[:, 64:]; return out"
    (tmp_path / "sitecustomize.py").write_text(SABOTAGE.format(body=body))
    ended = lmp(script_of(tmp_path, tiny_artifact, ["orthogonal"]), tmp_path, 2, {"PYTHONPATH": str(tmp_path)})
    errors = [line for line in ended.text.splitlines() if line.startswith("ERROR")]
    assert len(errors) == 1, ended.text
    assert "LAMMPS' exchange between ranks is wrong: ghost atoms do not get the rows of their owners" in errors[0]
    assert ended.code != 0


def test_compiled_forms_carry_the_exchange_with_them(alone: dict[str, Array], compiled_artifact: Path, tmp_path: Path) -> None:
    """Also on ranks without atoms or pairs."""
    found, text = simulate(tmp_path, compiled_artifact, 2)
    assert "back end aoti" in text
    worst = deviations(found, alone)
    assert max(worst.values()) <= 1e-10, worst


def test_single_precision_ranks(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Rows of single-precision numbers take another way through the buffers."""
    artifact = tmp_path / "single.pt"
    export(tiny_checkpoint, artifact, ExportOptions(precision="float32", backends=()))
    (found, _) = simulate(tmp_path, artifact, 2, ["orthogonal"])
    atoms, last = cases.orthogonal(), found["orthogonal"][-1]
    atoms.positions = last[:, 1:4]
    wanted = expected(atoms, load(artifact))
    np.testing.assert_allclose(last[:, 4:7], wanted.forces, rtol=0, atol=1e-5)
    np.testing.assert_allclose(last[:, 7], wanted.energies, rtol=0, atol=1e-5)
