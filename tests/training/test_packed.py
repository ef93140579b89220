"""Structures as flat arrays: the same graphs and labels as one by one, from every format, in memory or mapped from disk."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, fcc111, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase_db_backends.aselmdb import LMDBDatabase
from rich.console import Console

from tests.training.small import MODEL, equal, recipe, structures, train, weights, written
from triforces_deploy.errors import UserError
from triforces_deploy.neighbour_cap import capped
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.training.converting import Limits, convert, converted_tables
from triforces_deploy.training.packed import Packed, open_packed
from triforces_deploy.training.packing import Packer
from triforces_deploy.training.reading import labels_of, read_frames, read_packed
from triforces_deploy.training.sources.base import Record
from triforces_deploy.training.sources.table import SOURCES, read_records
from triforces_deploy.training.structures import Sample, join

KBAR = 0.1 * units.GPa
KCAL = units.kcal / units.mol
ELEMENTS = tuple(MODEL["elements"])


def flat(sample: Sample) -> list[torch.Tensor]:
    return [*sample.graph, *sample[1:4]]


# ---- every format ----


def pymatgen(atoms: Atoms) -> dict[str, Any]:
    """A structure as pymatgen's ``as_dict`` writes it."""
    sites = [
        {"species": [{"element": s, "occu": 1}], "abc": list(abc), "xyz": list(xyz), "label": s}
        for s, abc, xyz in zip(atoms.get_chemical_symbols(), atoms.get_scaled_positions(False), atoms.positions, strict=True)
    ]
    return {"@class": "Structure", "charge": 0, "lattice": {"matrix": atoms.cell.tolist()}, "sites": sites}


def write_extxyz(path: Path, atoms: list[Atoms]) -> None:
    written(path.parent, *atoms, name=path.name)


def write_database(path: Path, atoms: list[Atoms]) -> None:
    with connect(path) as database:
        for a in atoms:
            database.write(a, trajectory=a.info["trajectory"])


def write_lmdb(path: Path, atoms: list[Atoms]) -> None:
    with LMDBDatabase(path) as database:
        for a in atoms:
            database.write(a, key_value_pairs={"trajectory": a.info["trajectory"]})


def write_lemat(path: Path, atoms: list[Atoms]) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [
        {
            "immutable_id": a.info["trajectory"], "lattice_vectors": a.cell.tolist(), "dimension_types": [1, 1, 1],
            "species_at_sites": a.get_chemical_symbols(), "cartesian_site_positions": a.positions.tolist(), "functional": "pbe",
            "energy": a.get_potential_energy(), "forces": a.get_forces().tolist(),
            "stress_tensor": (-a.get_stress(voigt=False) / KBAR).tolist(),
        }
        for a in atoms
    ]  # fmt: skip
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_mptrj(path: Path, atoms: list[Atoms]) -> None:
    content: dict[str, dict[str, Any]] = {}
    for k, a in enumerate(atoms):
        content.setdefault(f"mp-{a.info['trajectory']}", {})[f"mp-{k}-0-{k}"] = {
            "structure": pymatgen(a), "uncorrected_total_energy": a.get_potential_energy(), "corrected_total_energy": -99.0,
            "energy_per_atom": -9.0, "force": a.get_forces().tolist(), "bandgap": 0.5, "magmom": None,
            "stress": (-a.get_stress(voigt=False) / KBAR).tolist(),
        }  # fmt: skip
    path.write_text(json.dumps(content))


def write_md17(path: Path, atoms: list[Atoms]) -> None:
    energies = np.array([[a.get_potential_energy() / KCAL] for a in atoms])
    arrays = {"R": [a.positions for a in atoms], "F": [a.get_forces() / KCAL for a in atoms], "z": atoms[0].numbers}
    np.savez(path, E=energies, **arrays)


def write_revised_md17(path: Path, atoms: list[Atoms]) -> None:
    arrays = {"coords": [a.positions for a in atoms], "forces": [a.get_forces() / KCAL for a in atoms]}
    energies = np.array([a.get_potential_energy() / KCAL for a in atoms])
    np.savez_compressed(path, nuclear_charges=atoms[0].numbers.astype(np.uint8), energies=energies, **arrays)


def crystals() -> list[Atoms]:
    return structures(3, 2)


def molecules() -> list[Atoms]:
    """One molecule that moves, without a cell."""
    rng, out = np.random.default_rng(0), []
    for _ in range(4):
        atoms = Atoms("Si2Ge", [(0, 0, 0), (2.3, 0, 0), (0, 2.4, 0)])
        atoms.positions += rng.normal(0, 0.1, (3, 3))
        atoms.calc = SinglePointCalculator(atoms, energy=float(rng.normal()), forces=rng.normal(0, 1, (3, 3)))
        atoms.info["trajectory"] = "one 0"
        out.append(atoms)
    return out


@pytest.mark.parametrize(
    ("name", "write", "made", "kind"),
    [
        ("a.extxyz", write_extxyz, crystals, "extxyz"),
        ("a.db", write_database, crystals, "ase"),
        ("a.json", write_database, crystals, "ase"),
        ("a.aselmdb", write_lmdb, crystals, "aselmdb"),
        ("a.parquet", write_lemat, crystals, "lemat"),
        ("MPtrj.json", write_mptrj, crystals, "mptrj"),
        ("one.npz", write_md17, molecules, "md17"),
        ("one.npz", write_revised_md17, molecules, "md17"),
    ],
)
def test_every_format_gives_the_same_labels(
    name: str,
    write: Callable[[Path, list[Atoms]], None],
    made: Callable[[], list[Atoms]],
    kind: str,
    tmp_path: Path,
) -> None:
    """In eV, Å and ASE's sign of the stress, found by the file's name or its first bytes; pulled crystals have it above 0."""
    atoms = made()
    write(tmp_path / name, atoms)
    found = list(read_records(tmp_path / name))
    assert [k for k, _ in found] == list(range(len(atoms)))
    assert [k for k, _ in read_records(tmp_path / name, kind)] == [k for k, _ in found]
    for truth, (_, record) in zip(atoms, found, strict=True):
        assert record.trajectory is not None
        assert record.trajectory.removeprefix("mp-") == truth.info["trajectory"]
        got = record.atoms
        assert got.get_chemical_symbols() == truth.get_chemical_symbols()
        assert got.pbc.tolist() == truth.pbc.tolist()
        np.testing.assert_allclose(got.cell.array, truth.cell.array, atol=1e-7)
        np.testing.assert_allclose(got.positions, truth.positions, atol=1e-7)
        labels = labels_of(got, "")
        assert labels.energy == pytest.approx(truth.get_potential_energy(), abs=1e-7)
        np.testing.assert_allclose(labels.forces, truth.get_forces(), atol=1e-7)
        if truth.cell.rank == 3:
            np.testing.assert_allclose(labels.stress, truth.get_stress(voigt=False), atol=1e-7)
        else:
            assert np.isnan(labels.stress).all()


def test_matbench_and_qm9_bring_their_properties(tmp_path: Path) -> None:
    """And no forces; a property that only some structures have is NaN for the others."""
    atoms = structures(2, 1)
    content = {"index": [0, 1], "columns": ["structure", "n"], "data": [[pymatgen(a), 1.5 + k] for k, a in enumerate(atoms)]}
    with gzip.open(tmp_path / "matbench_dielectric.json.gz", "wt") as stream:
        json.dump(content, stream)
    y = torch.arange(19.0)[None]
    water = molecule("H2O")
    raw = {"z": torch.tensor(water.numbers), "pos": torch.tensor(water.positions), "y": y, "name": "gdb_3", "idx": 0}
    torch.save([raw], tmp_path / "qm9_v3.pt")
    result = convert([tmp_path], tmp_path / "out", 4.0, Limits())
    assert (result.structures, result.without) == (3, {"energy": 2, "forces": 3, "stress": 3})
    packed = open_packed(tmp_path / "out" / "index.json")
    np.testing.assert_array_equal(packed.target("n")[:, 0], [1.5, 2.5, np.nan])
    np.testing.assert_array_equal(packed.target("gap")[:, 0], [np.nan, np.nan, 4.0])
    assert packed.about.trajectories == ("mb-dielectric-1", "mb-dielectric-2", "gdb_3")
    assert float(packed[2].energy) == 7.0
    assert packed.atoms(2).get_chemical_formula() == "H2O"
    with pytest.raises(UserError, match="no target 'gap2'; they have A, B, C, Cv, G"):
        packed.target("gap2")


def test_partial_occupation_and_other_formats(tmp_path: Path) -> None:
    structure = pymatgen(structures(1, 1)[0])
    structure["sites"][3]["species"] = [{"element": "Si", "occu": 0.5}, {"element": "Ge", "occu": 0.5}]
    (tmp_path / "a.json").write_text(json.dumps({"columns": ["structure", "n"], "data": [[structure, 1.0]]}))
    with pytest.raises(UserError, match=r"a.json@0 cannot be read .*partial occupation"):
        list(read_records(tmp_path / "a.json"))
    with pytest.raises(UserError, match="unknown format 'cif'; known: extxyz, ase, aselmdb, lemat"):
        list(read_records(tmp_path / "a.json", "cif"))
    assert {"lemat", "mptrj"} == {name for name, source in SOURCES.items() if source.stress < 0}


# ---- flat arrays ----


def packed_of(atoms: list[Atoms], cutoff: float) -> Packed:
    packer = Packer(cutoff)
    for k, a in enumerate(atoms):
        packer.add(Record(a), labels_of(a, ""), Path("a.extxyz"), k)
    return packer.packed()


def all_kinds() -> list[Atoms]:
    """Periodic along three, two and no directions, small and skewed cells, one atom, atoms far outside of the cell."""
    rng = np.random.default_rng(3)
    far = bulk("Si", "diamond", 5.4)
    far.positions[1] += 300 * far.cell.array[0]
    out = [
        bulk("Ge", "diamond", 5.6, cubic=True), bulk("Si", "diamond", 5.4), fcc111("Si", (2, 2, 3), 4.0, vacuum=5.0),
        Atoms("SiGe", [(0, 0, 0), (0, 0, 2.4)]), Atoms("Ge"), far,
    ]  # fmt: skip
    for atoms in out:
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
    return out


@pytest.mark.parametrize("most", [None, 5])
def test_a_batch_is_what_its_structures_are_one_by_one(most: int | None) -> None:
    """With the cutoff of the lists and with a smaller one, in any order, to the last bit where the numbers are the same."""
    atoms = all_kinds()
    wide = packed_of(atoms, 6.0)
    for cutoff in (6.0, 4.1):
        packed = wide.seen_by(ELEMENTS, cutoff, most, "here")
        for chosen in ([0, 1, 2, 3, 4, 5], [5, 2, 2], [4]):
            batch = packed.batch(chosen)
            graphs = [capped(graph_from_atoms(packed.atoms(k), cutoff), most) for k in chosen]
            nan = torch.full((1,), torch.nan)
            rival = join([Sample(g, nan, nan, nan) for g in graphs]).graph
            for ours, theirs, field in zip(batch.graph, rival, rival._fields, strict=True):
                assert ours.dtype == theirs.dtype
                if field not in ("edge_index", "edge_vector"):
                    assert torch.equal(ours, theirs), field
            for ours, theirs in zip(edges(batch.graph), edges(rival), strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def edges(graph: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Ends and vectors in an order of their own."""
    rows = np.concatenate([graph.edge_index.numpy().T, np.round(graph.edge_vector.numpy(), 6)], axis=1)
    order = np.lexsort(rows.T)
    return graph.edge_index.numpy()[:, order], graph.edge_vector.numpy()[order]


def test_atoms_that_wandered_through_hundreds_of_cells_are_brought_home() -> None:
    packed = packed_of(all_kinds(), 6.0)
    assert np.abs(packed.atoms(5).get_scaled_positions(wrap=False)).max() < 1.5


def test_what_a_model_does_not_see(tmp_path: Path) -> None:
    out = convert([written(tmp_path, *structures(1, 2))], tmp_path / "out", 4.0, Limits()).out
    with pytest.raises(UserError, match="neighbours up to 4 Å and the model sees 5 Å; convert the data again with --cutoff 5"):
        read_packed([out], ELEMENTS, 5.0)
    with pytest.raises(UserError, match=r"out/index.json holds Si; model.elements names Ge only"):
        read_packed([out], ("Ge",), 4.0)


# ---- converting ----


def test_training_on_packed_structures_gives_the_same_weights(tmp_path: Path) -> None:
    """Bit for bit those of the file that they come from, although lists reach further; frames keep their names."""
    path = written(tmp_path, *structures(6, 2))
    convert([path], tmp_path / "out", 5.0, Limits())
    settings = {"steps": 6, "validate_every": 3}
    train(recipe(path, trainer=settings), tmp_path / "one")
    train(recipe(tmp_path / "out", trainer=settings), tmp_path / "two")
    one, two = (weights(tmp_path / name / "last.ckpt") for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-12)
    ours, theirs = (read_frames([p], ELEMENTS, 3.6) for p in (tmp_path / "out", path))
    assert [f[1:] for f in ours] == [f[1:] for f in theirs]
    again = train(recipe(tmp_path / "out", trainer=settings), tmp_path / "two")
    assert again.status == "finished"
    assert equal(weights(tmp_path / "two" / "last.ckpt"), two)


def spoilt() -> list[Atoms]:
    """Two good structures and one of each fault."""
    good = structures(8, 1)
    forces = {k: a.get_forces() for k, a in enumerate(good)}
    good[2].positions[3] = good[2].positions[5] + [0.0, 0.0, 0.3]
    good[3].calc.results["forces"] = forces[3] + [[0, 0, 300.0]] + 0 * forces[3]
    good[4].calc.results["energy"] = float("nan")
    good[5].positions[1, 2] = np.inf
    good[6] = good[0].copy()
    good[6].calc = SinglePointCalculator(good[6], energy=1.0)
    del good[7].calc.results["forces"]
    for k, atoms in enumerate(good):
        atoms.info["trajectory"] = f"run {k}"
        atoms.calc.atoms = atoms.copy()  # or ASE would take the labels for those of another structure
    return good


def test_faults_and_repetitions_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.aselmdb"
    write_lmdb(path, spoilt())
    result = convert([path], tmp_path / "out", 4.0, Limits())
    assert (result.structures, result.without) == (3, {"energy": 0, "forces": 1, "stress": 0})
    rows = {row.why: (row.structures, row.first) for row in result.left_out}
    assert rows == {
        "atoms closer than 0.4 Å": (1, f"{path}@2"),
        "a force above 100 eV/Å": (1, f"{path}@3"),
        "energy is NaN or infinite": (1, f"{path}@4"),
        "no neighbour list: positions or cell are not finite, or a periodic cell has no volume": (1, f"{path}@5"),
        "repeats an earlier structure": (1, f"{path}@6"),
    }
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert len(index["about"]["left out"]) == 5
    kept = convert([path], tmp_path / "all", 4.0, Limits(nearest=0.2, force=500.0))
    assert kept.structures == 5


def test_nothing_is_left_half_written(tmp_path: Path) -> None:
    good = written(tmp_path, *structures(1, 2))
    bad = tmp_path / "bad.extxyz"
    bad.write_text("".join(good.read_text().splitlines(keepends=True)[:-3]))
    with pytest.raises(UserError, match=r"bad.extxyz@1 cannot be read"):
        convert([good, bad], tmp_path / "out", 4.0, Limits())
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="is an empty folder"):
        convert([empty], tmp_path / "out", 4.0, Limits())
    with pytest.raises(UserError, match=r"no structure is left to write; a force above 0.001 eV/Å: 2, first"):
        convert([good], tmp_path / "out", 4.0, Limits(force=1e-3))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.extxyz", "empty", "labels.extxyz"]
    convert([good], tmp_path / "out", 4.0, Limits())
    with pytest.raises(UserError, match="exists already; remove it or choose another name"):
        convert([good], tmp_path / "out", 4.0, Limits())


def test_damaged_folders(tmp_path: Path) -> None:
    result = convert([written(tmp_path, *structures(1, 2))], tmp_path / "out", 4.0, Limits())
    index = result.out / "index.json"
    content = index.read_text()
    shift = (result.out / "shift.bin").read_bytes()
    (result.out / "shift.bin").write_bytes(shift[:-3])
    with pytest.raises(UserError, match=rf"shift.bin has {len(shift) - 3} bytes, expected {len(shift)}; convert"):
        open_packed(index)
    (result.out / "shift.bin").unlink()
    with pytest.raises(UserError, match=r"shift.bin does not exist"):
        open_packed(index)
    for text, message in (("{}", "is no index"), ("[]", "is no index"), ("x", "is no index"), ('{"format": 9}', "of format 9")):
        index.write_text(text)
        with pytest.raises(UserError, match=message):
            open_packed(index)
    index.write_text(content)


def test_the_command_prints_what_it_did(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "a.aselmdb", spoilt())
    tfdeploy = Path(sys.executable).with_name("tfdeploy")
    command = [tfdeploy, "data", "convert", tmp_path / "a.aselmdb", "-o", tmp_path / "out", "--cutoff", "4"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Left out" in said
    assert "repeats an earlier structure" in said
    assert "without forces" in said
    assert "not verified" not in said


def test_a_unit_that_nobody_has_verified_is_said(tmp_path: Path) -> None:
    write_lemat(tmp_path / "a.parquet", crystals())
    result = convert([tmp_path / "a.parquet"], tmp_path / "out", 4.0, Limits())
    assert result.formats["lemat"]["stress"] == pytest.approx(-KBAR)
    (doubt,) = result.doubts
    assert "stress is taken for kbar" in doubt
    shown = Console(width=400, file=io.StringIO())
    shown.print(*converted_tables(result))
    assert isinstance(shown.file, io.StringIO)
    assert doubt in shown.file.getvalue()


def test_a_task_of_compositions_alone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "matbench_glass.json"
    path.write_text(json.dumps({"index": [0], "columns": ["composition", "gfa"], "data": [["Al", True]]}))
    with pytest.raises(UserError, match=r"has no structures \(columns: composition, gfa\)"):
        list(read_records(path))
