"""Public eSEN checkpoints, read without their package, against the numbers that it gave (fixtures/esen)."""

from __future__ import annotations

import copy
import dataclasses
import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import nn

from triforces_deploy import checkpoint, derivatives
from triforces_deploy.errors import UserError
from triforces_deploy.export.exporting import ExportOptions, export
from triforces_deploy.importing.esen import import_esen
from triforces_deploy.importing.foreign import read_object
from triforces_deploy.importing.importing import import_file
from triforces_deploy.model import Model
from triforces_deploy.neighbours import graph_from_atoms

FIXTURES = Path(__file__).parents[1] / "fixtures" / "esen"
SCALE = 2.5
"""Of the energies of 'omat'; references are −Z/2 of it."""


def unpacked(name: str, folder: Path) -> Path:
    """A checkpoint as its package saved it."""
    file = folder / f"{name}.pt"
    file.write_bytes(lzma.decompress((FIXTURES / f"{name}.pt.xz").read_bytes()))
    return file


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conservative model."""
    return unpacked("small", tmp_path_factory.mktemp("public"))


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that reads forces and stress off the features."""
    return unpacked("direct", tmp_path_factory.mktemp("public"))


def with_options(model: Model, options: dict[str, Any]) -> Model:
    """The same weights for another charge and spin."""
    backbone = dataclasses.replace(model.config.backbone, options={**model.config.backbone.options, **options})
    other = Model(dataclasses.replace(model.config, backbone=backbone))
    other.set_network_dtype(torch.float64)
    other.load_state_dict(model.state_dict())
    return other.eval().requires_grad_(False)


@pytest.mark.parametrize("key", ["molecule", "crystal", "triclinic", "isolated"])
def test_numbers_equal_the_public_package(key: str, public: Path, tmp_path: Path) -> None:
    summary = import_file("esen", public, tmp_path / "small.ckpt", head="omat")
    assert summary.said["dataset"] == "omat"
    assert len(summary.elements) == 99
    with np.load(FIXTURES / "small.npz") as file:
        golden = dict(file)
    said = json.loads(str(golden["options"]))
    model = with_options(checkpoint.load(tmp_path / "small.ckpt")[0], {"charge": said["charge"], "spin": said["spin"]})
    numbers = golden[f"numbers/{key}"]
    atoms = Atoms(numbers, positions=golden[f"positions/{key}"], cell=golden[f"cell/{key}"], pbc=golden[f"pbc/{key}"])
    graph = graph_from_atoms(atoms, model.config.cutoff)
    found = derivatives.evaluate(model, graph)
    energies = SCALE * golden[f"energies/{key}"] - 0.5 * SCALE * numbers
    np.testing.assert_allclose(found.energies.numpy(), energies, rtol=1e-12, atol=0)
    forces = SCALE * golden[f"forces/{key}"]
    atol = 1e-10 * max(np.abs(forces).max(), 1e-3)
    np.testing.assert_allclose(derivatives.forces(found.edge_forces, graph).numpy(), forces, rtol=0, atol=atol)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("key", ["molecule", "crystal", "triclinic", "isolated"])
def test_direct_forces_and_stress_equal_the_public_package(
    key: str, dtype: torch.dtype, tolerance: float, direct: Path, tmp_path: Path
) -> None:
    import_file("esen", direct, tmp_path / "direct.ckpt")
    model, _ = checkpoint.load(tmp_path / "direct.ckpt")
    model.set_network_dtype(dtype)
    with np.load(FIXTURES / "direct.npz") as file:
        golden = dict(file)
    numbers = golden[f"numbers/{key}"]
    atoms = Atoms(numbers, positions=golden[f"positions/{key}"], cell=golden[f"cell/{key}"], pbc=golden[f"pbc/{key}"])
    energies, found = model.directly(graph_from_atoms(atoms, model.config.cutoff))
    expected = {
        "energy": SCALE * golden[f"energy/{key}"] - 0.5 * SCALE * numbers.sum(),
        "forces": 1.25 * golden[f"forces/{key}"],
        "stress": 0.75 * golden[f"stress/{key}"].reshape(1, 3, 3),
    }
    for quantity, value in {"energy": energies.sum()[None], "forces": found.forces, "stress": found.stress}.items():
        worst = np.abs(value.detach().numpy() - expected[quantity]).max()
        assert worst <= tolerance * max(np.abs(expected[quantity]).max(), 1e-3), quantity


def test_a_direct_model_is_read_twice_alike_and_not_exported(direct: Path, tmp_path: Path) -> None:
    once, again = (import_esen(direct, None, ["Na", "Cl"]).model for _ in range(2))
    for parameter, other in zip(once.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=0, atol=0)
    assert not once.facts().conservative
    import_file("esen", direct, tmp_path / "direct.ckpt")
    with pytest.raises(UserError, match="predicts forces directly"):
        export(tmp_path / "direct.ckpt", tmp_path / "direct.pt", ExportOptions(backends=()))


def _without(key: str) -> Any:
    return lambda state: state["ema_state_dict"].pop(f"module.{key}")


def _renamed(key: str, to: str) -> Any:
    def change(state: dict[str, Any]) -> None:
        state["ema_state_dict"][f"module.{to}"] = state["ema_state_dict"][f"module.{key}"]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("output_heads.forces.linear.weight"), "has 0 heads of forces; one is represented"),
        (_without("output_heads.stress.scalar_block.2.bias"), r"has no output_heads\.stress\.scalar_block\.2\.bias"),
        (_renamed("output_heads.forces.linear.weight", "output_heads.x.linear.weight"), "has 2 heads of forces"),
        (lambda s: s["tasks_config"][1]["normalizer"].update(mean=0.1), r"forces are shifted by 0\.1"),
        (lambda s: s["tasks_config"].pop(), "has 0 tasks for the stress of 'omat'"),
        (lambda s: s["model_config"]["heads"]["stress"].update(reduce="sum"), "reduce of the stress is sum"),
        (
            _renamed("output_heads.energy.energy_block.0.bias", "output_heads.dipole.bias"),
            "dipole.bias, which has no counterpart",
        ),
    ],
)
def test_direct_heads_that_are_not_represented_are_refused_by_name(
    change: Any, message: str, direct: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        import_esen(changed(direct, tmp_path / "x.pt", change), None, None)


def test_molecules_have_a_spin_and_elements_can_be_chosen(public: Path) -> None:
    made = import_esen(public, "omol", ["Si", "C"])
    assert made.model.config.elements == ("Si", "C")
    assert made.said["spin"] == 1
    assert float(made.model.scale) == 1.5


class _Written(nn.Module):
    """Holds whatever attributes it is given; pickled, it is an object of a class like any other."""


def changed(public: Path, to: Path, change: Any) -> Path:
    """A checkpoint of which something is not as it was."""
    state = copy.deepcopy(read_object(public, "a checkpoint").state)
    change(state)
    written = _Written()
    written.__dict__.update(state)
    torch.save(written, to)
    return to


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("direct_forces", True, "has 0 tasks for the forces of 'omat'"),
        ("act_type", "s2", "act_type is s2; only gate is represented"),
        ("norm_type", "layer_norm", "norm_type is layer_norm"),
        ("num_experts", 32, "num_experts is 32: not represented"),
        ("charge_balanced_channels", [0, 1], "charge_balanced_channels"),
        ("model", "escaip_backbone", "only eSEN in its form eSCN-MD"),
        ("num_layers", 3, "which its options ask for"),
        ("num_layers", 1, r"backbone\.blocks\.1\..* has no counterpart here"),
        ("hidden_channels", 7, "does not fit the sizes"),
    ],
)
def test_what_is_not_represented_is_refused_by_name(
    option: str, value: Any, message: str, public: Path, tmp_path: Path
) -> None:
    def change(state: dict[str, Any]) -> None:
        state["model_config"]["backbone"][option] = value

    with pytest.raises(UserError, match=message):
        import_esen(changed(public, tmp_path / "x.pt", change), "omat", None)


def test_other_faults_are_one_line(public: Path, tmp_path: Path) -> None:
    def shift(state: dict[str, Any]) -> None:
        state["tasks_config"][1]["normalizer"]["mean"] = 0.3

    with pytest.raises(UserError, match="has several data sets, choose one with --head: omol, omat"):
        import_esen(public, None, None)
    with pytest.raises(UserError, match="has no data set 'oc20'"):
        import_esen(public, "oc20", None)
    with pytest.raises(UserError, match="does not know 'Lr'; it knows those up to Es"):
        import_esen(public, "omat", ["Si", "Lr"])
    with pytest.raises(UserError, match=r"shifted by 0\.3 per structure"):
        import_esen(changed(public, tmp_path / "x.pt", shift), "omat", None)
    torch.save(_Written(), tmp_path / "y.pt")
    with pytest.raises(UserError, match="has no model_config"):
        import_esen(tmp_path / "y.pt", "omat", None)
