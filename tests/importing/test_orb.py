"""Public Orb-v3 weights, read without their package, against the numbers that it gave (fixtures/orb_v3)."""

from __future__ import annotations

import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import Tensor

from triforces_deploy import checkpoint, derivatives
from triforces_deploy.artifact import load
from triforces_deploy.calculator import TriForcesCalculator
from triforces_deploy.eager import as_trained
from triforces_deploy.errors import UserError
from triforces_deploy.export.exporting import ExportOptions, export
from triforces_deploy.importing.foreign import read_weights
from triforces_deploy.importing.importing import import_file
from triforces_deploy.importing.orb import import_orb
from triforces_deploy.neighbour_cap import capped
from triforces_deploy.neighbours import graph_from_atoms

FIXTURES = Path(__file__).parents[1] / "fixtures" / "orb_v3"
STRUCTURES = ["molecule", "crystal", "tiny", "triclinic", "isolated", "dense"]


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights as their package saved them."""
    folder = tmp_path_factory.mktemp("public")
    for name in ("conservative", "direct", "charged"):
        (folder / f"{name}.ckpt").write_bytes(lzma.decompress((FIXTURES / f"{name}.ckpt.xz").read_bytes()))
    return folder


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / f"{name}.npz") as file:
        return dict(file)


def structure(numbers: dict[str, np.ndarray], key: str) -> Atoms:
    return Atoms(
        numbers[f"numbers/{key}"],
        positions=numbers[f"positions/{key}"],
        cell=numbers[f"cell/{key}"],
        pbc=numbers[f"pbc/{key}"],
    )


@pytest.mark.parametrize("neighbours", [0, 20])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", ["conservative", "direct", "charged"])
def test_numbers_equal_the_public_package(
    name: str, dtype: torch.dtype, tolerance: float, neighbours: int, public: Path, tmp_path: Path
) -> None:
    import_file("orb", public / f"{name}.ckpt", tmp_path / "orb.ckpt", neighbours=neighbours)
    model, _ = checkpoint.load(tmp_path / "orb.ckpt")
    model.set_network_dtype(dtype)
    calculator = TriForcesCalculator(as_trained(model))
    numbers, group = golden(name), "few/" if neighbours else ""
    for key in STRUCTURES:
        atoms = structure(numbers, key)
        calculator.calculate(atoms)
        graph = capped(graph_from_atoms(atoms, 6.0), neighbours or None)
        found = {**calculator.results, "features": model.embeddings(graph)["interaction"]}
        for quantity in ("energy", "forces", "features", "stress"):
            if f"{group}{quantity}/{key}" in numbers:
                expected = numbers[f"{group}{quantity}/{key}"]
                # Forces that all but cancel are rounded like those between neighbours, of about 0.1 eV/Å here.
                scale = max(np.abs(expected).max(), 0.1 if quantity == "forces" else 1e-3)
                assert np.abs(np.asarray(found[quantity]) - expected).max() <= tolerance * scale, (key, quantity)


def test_what_a_file_name_and_the_user_say_of_neighbours(public: Path, tmp_path: Path) -> None:
    few = tmp_path / "orb-v3-conservative-20-omat.ckpt"
    few.write_bytes((public / "conservative.ckpt").read_bytes())
    for source, asked, seen in [
        (few, None, "the nearest 20"),
        (few, 0, "all"),
        (public / "conservative.ckpt", None, "all"),
        (public / "conservative.ckpt", 120, "the nearest 120"),
    ]:
        assert import_file("orb", source, tmp_path / "x.ckpt", neighbours=asked).neighbours == seen
    with pytest.raises(UserError, match="--neighbours -1: expected a number"):
        import_file("orb", few, tmp_path / "x.ckpt", neighbours=-1)
    assert not import_orb(few, None, None).model.facts().smooth


def test_direct_forces_are_no_derivative_and_are_not_exported(public: Path, tmp_path: Path) -> None:
    import_file("orb", public / "direct.ckpt", tmp_path / "direct.ckpt", elements=["Na", "Cl"])
    model, _ = checkpoint.load(tmp_path / "direct.ckpt")
    assert not model.facts().conservative
    graph = graph_from_atoms(structure(golden("direct"), "crystal"), 6.0)
    found = as_trained(model).evaluate(graph)
    assert found.forces is not None
    slopes = derivatives.forces(found.edge_forces, graph)
    assert (slopes - found.forces).abs().max() > 0.1 * found.forces.abs().max()
    with pytest.raises(UserError, match=r"predicts forces directly .*drift.* fine-tune it with model\.direct: false"):
        export(tmp_path / "direct.ckpt", tmp_path / "direct.pt", ExportOptions(backends=()))
    assert not (tmp_path / "direct.pt").exists()


def test_a_mean_is_exported_as_a_fitted_sum_and_refused_without(public: Path, tmp_path: Path) -> None:
    """A weak perceptron is nearly affine, so that the fit is good; the averaged repulsion goes."""
    import_file("orb", public / "conservative.ckpt", tmp_path / "orb.ckpt", elements=["Na", "Cl"])
    model, _ = checkpoint.load(tmp_path / "orb.ckpt")
    assert model.config.zbl_form == "orb-mean"
    with pytest.raises(UserError, match="a model that is not separable runs on one rank"):
        model.facts().refuse_ranks()
    with pytest.raises(UserError, match="readout 'mean' with a nonlinear head is not separable"):
        export(tmp_path / "orb.ckpt", tmp_path / "orb.pt", ExportOptions(backends=()))
    model.head.layers[0].weight.mul_(0.02)
    checkpoint.save(tmp_path / "weak.ckpt", model, {})
    rng = np.random.default_rng(4)
    crystal, crystals = structure(golden("conservative"), "crystal"), {}
    for k in range(8):
        atoms = crystal.copy()
        atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
        crystals[f"{k}"] = atoms
    artifact = export(tmp_path / "weak.ckpt", tmp_path / "orb.pt", ExportOptions(backends=(), refit=crystals))
    facts = artifact.metadata.facts
    assert facts.readout == "refitted"
    assert facts.separable
    assert any("a mean over all atoms and is left out" in line for line in facts.policies)
    graph = graph_from_atoms(crystal, 6.0)
    expected = as_trained(model).evaluate(graph).energies.sum()
    assert float(load(tmp_path / "orb.pt").evaluate(graph).energies.sum()) == pytest.approx(float(expected), abs=0.005 * 8)


Weights = dict[str, Tensor]


def changed(public: Path, to: Path, change: Any, name: str = "conservative") -> Path:
    """Weights of which something is not as it was."""
    weights: Weights = read_weights(public / f"{name}.ckpt", "weights")
    change(weights)
    torch.save(weights, to)
    return to


def renamed(weights: Weights) -> None:
    weights["node_head.mlp.NN-0.weight"] = weights.pop("heads.energy.mlp.NN-0.weight")


def other_waves(weights: Weights) -> None:
    weights["model.rbf_transform.bessel_weights"] = 1.01 * weights["model.rbf_transform.bessel_weights"]


def without(key: str) -> Any:
    return lambda weights: weights.pop(key)


def wider(weights: Weights) -> None:
    weights["heads.energy.mlp.NN-1.weight"] = torch.zeros(1, 11)


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        (renamed, "conservative", "is an Orb-v2 model"),
        (other_waves, "conservative", "other wave numbers than kπ / 6 Å"),
        (lambda w: w.update(extra=torch.zeros(1)), "conservative", "has the parameter extra, which has no counterpart here"),
        (without("model.gnn_stacks.1._send_attn.bias"), "conservative", "has no model.gnn_stacks.1._send_attn.bias"),
        (without("model.atom_emb.embeddings.weight"), "conservative", "expected the weights of an Orb-v3 model"),
        (without("heads.energy.normalizer.bn.running_var"), "conservative", "has no heads.energy.normalizer.bn.running_var"),
        (lambda w: w["heads.forces.normalizer.bn.running_var"].zero_(), "direct", "no mean and positive variance"),
        (without("heads.stress.mlp.NN-1.weight"), "direct", "has no heads.stress.mlp.NN-1.weight"),
        (without("heads.forces.mlp.NN-0.weight"), "direct", "neither conservative nor has it a head of forces"),
        (
            lambda w: w.update({"heads.forces.mlp.NN-0.weight": torch.zeros(1)}),
            "conservative",
            "heads.forces.mlp.NN-0.weight, wh",
        ),
        (wider, "conservative", "head.layers.2.weight does not fit the sizes"),
    ],
)
def test_what_is_not_represented_is_refused_by_name(change: Any, name: str, message: str, public: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        import_orb(changed(public, tmp_path / "x.ckpt", change, name), None, None)


def test_other_faults_are_one_line(public: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--head a: Orb-v3 models have one head"):
        import_orb(public / "direct.ckpt", "a", None)
    with pytest.raises(UserError, match="has no reference energy of 'Og'"):
        import_orb(public / "direct.ckpt", None, ["Si", "Og"])
    torch.save(torch.zeros(3), tmp_path / "y.ckpt")
    with pytest.raises(UserError, match="holds no weights by name"):
        import_orb(tmp_path / "y.ckpt", None, None)


def test_elements_can_be_chosen_and_charges_are_said(public: Path) -> None:
    made = import_orb(public / "charged.ckpt", None, ["Si", "C"])
    assert made.model.config.elements == ("Si", "C")
    assert made.said == {"class": "Orb-v3 conservative", "charge": 0, "spin": 1}
    assert made.model.config.head_hidden == (10,)


def test_direct_models_of_molecules_have_no_stress(public: Path, tmp_path: Path) -> None:
    def leave_out_stress(weights: Weights) -> None:
        for key in [key for key in weights if key.startswith("heads.stress.")]:
            del weights[key]

    import_file("orb", changed(public, tmp_path / "x.ckpt", leave_out_stress, "direct"), tmp_path / "orb.ckpt")
    calculator = TriForcesCalculator.of_checkpoint(tmp_path / "orb.ckpt")
    numbers = golden("direct")
    calculator.calculate(structure(numbers, "crystal"))
    np.testing.assert_allclose(calculator.results["forces"], numbers["forces/crystal"], rtol=0, atol=1e-12)
    assert "stress" not in calculator.results
    with pytest.raises(UserError, match="direct_stress: false is for imported models"):
        checkpoint.load(tmp_path / "orb.ckpt")[0].config.refuse_frozen()
