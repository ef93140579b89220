"""Labelled structures from files: what is read, and what is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect

from tests.training.small import frames_of, structures, written
from triforces_deploy.errors import UserError


@pytest.mark.parametrize("suffix", [".db", ".json"])
def test_extxyz_and_databases_give_the_same(suffix: str, tmp_path: Path) -> None:
    atoms = structures(2, 2)
    with connect(tmp_path / f"labels{suffix}") as database:
        for a in atoms:
            database.write(a, trajectory=a.info["trajectory"])
    ours, theirs = frames_of(written(tmp_path, *atoms)), frames_of(tmp_path / f"labels{suffix}")
    assert [f.trajectory for f in theirs] == ["run 0", "run 0", "run 1", "run 1"]
    assert all(f.declared for f in (*ours, *theirs))
    for a, one, two in zip(atoms, ours, theirs, strict=True):
        np.testing.assert_allclose(two.sample.forces, a.get_forces(), rtol=0, atol=0)
        np.testing.assert_allclose(two.sample.stress[0], a.get_stress(voigt=False), rtol=0, atol=0)
        assert float(two.sample.energy) == a.get_potential_energy()
        for left, right in zip(one.sample[1:4], two.sample[1:4], strict=True):
            np.testing.assert_allclose(left, right, rtol=0, atol=1e-7)  # extxyz has 8 decimals
        assert torch.equal(one.sample.graph.edge_index, two.sample.graph.edge_index)
        assert torch.equal(one.sample.graph.numbers, two.sample.graph.numbers)
        np.testing.assert_allclose(one.sample.graph.edge_vector, two.sample.graph.edge_vector, atol=1e-7)


def test_a_missing_stress_is_nan_and_so_is_that_of_a_molecule(tmp_path: Path) -> None:
    solid, molecule = structures(1, 1)[0], Atoms("SiGe", [(0, 0, 0), (0, 0, 2.4)])
    del solid.calc.results["stress"]
    molecule.calc = SinglePointCalculator(molecule, energy=-1.0, forces=np.zeros((2, 3)))
    for frame in frames_of(written(tmp_path, solid, molecule)):
        assert bool(frame.sample.stress.isnan().all())
        assert bool(frame.sample.forces.isfinite().all())


def test_frames_without_a_trajectory_are_told_by_file_and_formula(tmp_path: Path) -> None:
    atoms = structures(2, 2)
    for a in atoms:
        del a.info["trajectory"]
    found = frames_of(written(tmp_path, *atoms))
    assert [f.trajectory for f in found] == ["labels.extxyz:Si8"] * 2 + ["labels.extxyz:GeSi7"] * 2
    assert not any(f.declared for f in found)
    assert [f.name for f in found] == [f"{tmp_path}/labels.extxyz@{k}" for k in range(4)]


def without(key: str) -> Callable[[Atoms], None]:
    return lambda atoms: atoms.calc.results.pop(key)


def spoilt(key: str, value: float) -> Callable[[Atoms], None]:
    def spoil(atoms: Atoms) -> None:
        label = np.array(atoms.calc.results[key], dtype=float)
        label.flat[-1] = value
        atoms.calc.results[key] = float(label) if label.ndim == 0 else label

    return spoil


def with_hydrogen(atoms: Atoms) -> None:
    atoms.numbers[2] = 1


def overlapping(atoms: Atoms) -> None:
    atoms.positions[3] = atoms.positions[5] + [0, 0, 0.02] + atoms.cell.array[0]


def lost(atoms: Atoms) -> None:
    atoms.positions[1, 2] = np.nan


def flat(atoms: Atoms) -> None:
    atoms.cell[2] = atoms.cell[1]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("energy"), "has no energy; expected the label 'energy'"),
        (without("forces"), "has no forces; expected the label 'forces'"),
        (spoilt("energy", np.nan), "energy holds NaN or infinity"),
        (spoilt("forces", np.nan), "forces holds NaN or infinity"),
        (spoilt("forces", np.inf), "forces holds NaN or infinity"),
        (spoilt("stress", np.nan), "stress holds NaN or infinity; leave it out"),
        (with_hydrogen, r"holds H; model.elements names Si, Ge only"),
        (overlapping, r"atoms [35] and [35] are 0.02 Å apart"),
        (lost, "positions or cell hold NaN"),
        (flat, "linearly dependent"),
    ],
)
def test_a_bad_frame_is_one_line_with_its_number(damage: Callable[[Atoms], None], message: str, tmp_path: Path) -> None:
    atoms = structures(1, 3)
    calc = atoms[2].calc
    damage(atoms[2])
    calc.atoms = atoms[2].copy()  # or ASE would take the labels for those of another structure
    with pytest.raises(UserError, match=message) as caught:
        frames_of(written(tmp_path, *atoms))
    assert str(caught.value).startswith(f"{tmp_path}/labels.extxyz@2")
    assert "\n" not in str(caught.value)


def test_labels_under_foreign_names_are_listed(tmp_path: Path) -> None:
    atoms = structures(1, 1)[0]
    plain = atoms.copy()
    plain.info["dft_energy"], plain.arrays["dft_forces"] = -3.0, atoms.get_forces()
    with pytest.raises(UserError, match=r"has no energy.*dft_energy.*dft_forces"):
        frames_of(written(tmp_path, plain))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.extxyz", b"", "holds no structures; expected at least one"),
        ("none.extxyz", b'0\nProperties=species:S:1:pos:R:3 energy=1.0 pbc="F F F"\n', "no atoms|holds no structures"),
        ("words.extxyz", b"once upon a time\n", "cannot be read"),
        ("bytes.extxyz", bytes(range(128, 256)), "cannot be read"),
        ("words.db", b"once upon a time\n" * 100, "cannot be read"),
        ("empty.db", b"", "cannot be read|holds no structures"),
        ("words.json", b"once upon a time\n", "cannot be read"),
        ("empty.json", b"", "cannot be read|holds no structures"),
    ],
)
def test_files_that_are_no_labels(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        frames_of(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_cut_short(tmp_path: Path) -> None:
    path = written(tmp_path, *structures(1, 3))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-4]))
    with pytest.raises(UserError, match=r"labels.extxyz@2 cannot be read"):
        frames_of(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; expected labelled structures"):
        frames_of(tmp_path / "no.extxyz")
    with pytest.raises(UserError, match="is a folder"):
        frames_of(tmp_path)


def test_reading_is_silent(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(frames_of(written(tmp_path, *structures(1, 2)))) == 2
