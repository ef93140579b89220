"""Public MACE models, read without their package, against the numbers that it gave (fixtures/mace)."""

from __future__ import annotations

import dataclasses
import json
import lzma
import os
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms

from triforces_deploy import checkpoint, derivatives
from triforces_deploy.artifact import read_artifact
from triforces_deploy.calculator import TriForcesCalculator
from triforces_deploy.config import CompositionConfig
from triforces_deploy.errors import UserError
from triforces_deploy.export.exporting import ExportOptions, export
from triforces_deploy.importing.foreign import read
from triforces_deploy.importing.importing import import_file
from triforces_deploy.importing.mace import import_mace
from triforces_deploy.importing.mace_table import refuse_leftovers
from triforces_deploy.model import Model
from triforces_deploy.neighbours import graph_from_atoms

FIXTURES = Path(__file__).parents[1] / "fixtures" / "mace"
HEADS = {"plain": None, "full": "second", "fourth": None, "single": None}
STRUCTURES = ["molecule", "crystal", "tiny", "triclinic", "isolated"]
TFDEPLOY = str(Path(sys.executable).with_name("tfdeploy"))


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The models as their package saved them."""
    folder = tmp_path_factory.mktemp("public")
    for name in HEADS:
        (folder / f"{name}.model").write_bytes(lzma.decompress((FIXTURES / f"{name}.model.xz").read_bytes()))
    return {name: folder / f"{name}.model" for name in HEADS}


def golden(name: str, structure: str) -> tuple[Atoms, dict[str, np.ndarray]]:
    with np.load(FIXTURES / f"{name}.npz") as file:
        found = {k.partition("/")[2]: v for k, v in file.items() if k.startswith(f"{structure}/")}
    atoms = Atoms(found["numbers"], positions=found["positions"], cell=found["cell"], pbc=found["pbc"])
    return atoms, found


@cache
def imported(path: Path, head: str | None, dtype: torch.dtype) -> Model:
    """Not to be changed: several tests share it."""
    model = import_mace(path, head, None).model
    model.set_network_dtype(dtype)
    return model


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_numbers_equal_the_public_package(
    name: str, structure: str, dtype: torch.dtype, tolerance: float, public: dict[str, Path]
) -> None:
    """Those of the package are float64 for both: its own float32 is up to fifteen times further from them than ours."""
    model = imported(public[name], HEADS[name], dtype)
    atoms, expected = golden(name, structure)
    graph = graph_from_atoms(atoms, model.config.cutoff)
    energies, edge_forces, features = model.run(graph, model.extras())
    found = {
        "energy": energies.sum(),
        "node_energy": energies,
        "forces": derivatives.forces(edge_forces, graph),
        "features": features,
    }
    if atoms.cell.rank == 3:
        found["stress"] = derivatives.stress(edge_forces, graph)[0]
    for quantity, value in found.items():
        reference = expected[quantity]
        assert np.abs(value.numpy() - reference).max() <= tolerance * np.abs(reference).max(), quantity


def test_the_numbers_depend_on_the_repulsion_the_head_and_the_transform(public: dict[str, Path]) -> None:
    """Or the test above would not see them."""
    atoms, expected = golden("full", "crystal")
    model = import_mace(public["full"], "second", None).model
    graph = graph_from_atoms(atoms, model.config.cutoff)
    repulsion = model.zbl
    assert repulsion is not None
    assert float(repulsion(graph).max()) > 1e-3
    with torch.no_grad():
        other = imported(public["full"], "first", torch.float64)(graph).numpy()
        model.interaction.get_buffer("agnesi_q").add_(0.1)
        changed = model(graph).numpy()
    for wrong in (other, changed):
        assert np.abs(wrong - expected["node_energy"]).max() > 1e-6


def test_fewer_elements_give_the_same_numbers(public: dict[str, Path]) -> None:
    atoms, expected = golden("full", "crystal")
    model = import_mace(public["full"], "second", ["Si", "C"]).model
    assert model.config.elements == ("Si", "C")
    with torch.no_grad():
        energies = model(graph_from_atoms(atoms, model.config.cutoff)).numpy()
    np.testing.assert_allclose(energies, expected["node_energy"], rtol=1e-12)


def test_import_makes_an_ordinary_checkpoint(public: dict[str, Path], tmp_path: Path) -> None:
    """From the command line to an artifact with the numbers of the public package."""
    ckpt, pt = tmp_path / "full.ckpt", tmp_path / "full.pt"
    command = [TFDEPLOY, "import", "mace", public["full"], "-o", ckpt, "--head", "second", "--json"]
    summary = json.loads(subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True).stdout)
    assert summary["said"]["heads"] == ["first", "second"]
    export(ckpt, pt, ExportOptions(backends=()))
    metadata = read_artifact(pt).metadata
    assert metadata.provenance["imported"]["file"] == "full.model"
    assert metadata.facts.n_exchanges == 1
    atoms, expected = golden("full", "molecule")
    atoms.calc = TriForcesCalculator(str(pt))
    assert atoms.get_potential_energy() == pytest.approx(expected["energy"], rel=1e-12)
    np.testing.assert_allclose(atoms.get_forces(), expected["forces"], rtol=0, atol=1e-10 * np.abs(expected["forces"]).max())


def test_streams_are_added_without_changing_the_energy(public: dict[str, Path], tmp_path: Path) -> None:
    """What fine-tuning with streams starts from: new columns of the head begin at zero, the rest stays."""
    path = tmp_path / "plain.ckpt"
    import_file("mace", public["plain"], path)
    model, _ = checkpoint.load(path)
    config = dataclasses.replace(model.config, composition=CompositionConfig(width=8, heads=2, layers=1, hidden=8))
    grown = Model(config)
    grown.set_network_dtype(torch.float64)
    state, new = model.state_dict(), grown.state_dict()
    for key, tensor in state.items():
        if tensor.shape != new[key].shape:
            state[key] = torch.cat([tensor.new_zeros(len(tensor), new[key].shape[1] - tensor.shape[1]), tensor], dim=1)
    grown.load_state_dict(new | state)
    atoms, expected = golden("plain", "crystal")
    with torch.no_grad():
        energies = grown.eval()(graph_from_atoms(atoms, config.cutoff)).numpy()
    np.testing.assert_allclose(energies, expected["node_energy"], rtol=1e-12)


class Runs:
    """Pickled, it asks for a command to be run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    torch.save(Runs(tmp_path / "mark"), tmp_path / "bad.model")
    with pytest.raises(UserError, match="holds no model"):
        import_mace(tmp_path / "bad.model", None, None)
    assert not (tmp_path / "mark").exists()


def test_what_is_not_represented_is_refused_by_name(public: dict[str, Path]) -> None:
    model = read(public["plain"], "a model")
    model.get("interactions.1").state["_parameters"]["strange"] = torch.ones(3)
    with pytest.raises(UserError, match=r"has the parameter interactions\.1\.strange"):
        refuse_leftovers(model, {name for name, _ in model.tensors("_parameters")} - {"interactions.1.strange"}, "x")


@pytest.mark.parametrize(
    ("place", "attribute", "value", "message"),
    [
        ("", "apply_cutoff", False, "apply_cutoff=False"),
        ("", "use_so3", True, "use_so3"),
        ("", "use_agnostic_product", True, "use_agnostic_product"),
        ("interactions.0", "avg_num_neighbors", None, "no positive number as avg_num_neighbors"),
    ],
)
def test_options_that_are_not_represented_are_refused(
    place: str, attribute: str, value: object, message: str, public: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = read(public["plain"], "a model")
    (model.get(place) if place else model).state[attribute] = value
    monkeypatch.setattr("triforces_deploy.importing.mace.read", lambda *_: model)
    with pytest.raises(UserError, match=message):
        import_mace(public["plain"], None, None)


def test_wrong_files_and_options_are_one_line(public: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "text.model").write_text("hello")
    (tmp_path / "cut.model").write_bytes(public["plain"].read_bytes()[:-1000])
    torch.save({"model": {"a": torch.ones(1)}}, tmp_path / "dict.model")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "linear.model")
    with zipfile.ZipFile(tmp_path / "script.model", "w") as archive:  # what tells a TorchScript program apart
        archive.writestr("script/data.pkl", b"")
        archive.writestr("script/constants.pkl", b"")
    for path, message in [
        (tmp_path / "none.model", "does not exist"),
        (tmp_path / "text.model", "not a file that torch saved"),
        (tmp_path / "cut.model", "damaged"),
        (tmp_path / "dict.model", "weights without the model"),
        (tmp_path / "linear.model", "is a torch.nn.modules.linear.Linear; expected one of MACE"),
        (tmp_path / "script.model", "TorchScript"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            import_mace(path, None, None)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="has several heads, choose one with --head: first, second"):
        import_mace(public["full"], None, None)
    with pytest.raises(UserError, match="has no head 'third'"):
        import_mace(public["full"], "third", None)
    with pytest.raises(UserError, match="does not know 'Ge'; it knows H, C, O, Si"):
        import_mace(public["full"], "first", ["Ge"])
    with pytest.raises(UserError, match="unknown kind of model 'mcae'; known: esen, mace"):
        import_file("mcae", public["full"], tmp_path / "x.ckpt")
    assert not (tmp_path / "x.ckpt").exists()
