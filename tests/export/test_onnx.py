"""ONNX: the same numbers as eager, on any number of threads the same bits."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from triforces_deploy import artifact, derivatives
from triforces_deploy.artifact import read_artifact
from triforces_deploy.errors import UserError
from triforces_deploy.export.backends.base import Captured
from triforces_deploy.export.backends.gathers import gather_sum, without_scatter
from triforces_deploy.export.backends.onnx import DERIVED, lower
from triforces_deploy.export.backends.onnx_model import refuse_scatter, to_onnx
from triforces_deploy.export.probes import probe_structures
from triforces_deploy.export.verify import check, compare, parity
from triforces_deploy.graph import collate
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.nn.scatter import scatter_sum
from triforces_deploy.payloads.base import UnusableError, flat_inputs
from triforces_deploy.payloads.onnx import onnx_inputs, padded_table, providers, runner
from triforces_deploy.payloads.table import PREFERENCE
from triforces_deploy.precision import PRECISIONS

CUTOFF = 4.0


def structures() -> dict[str, Atoms]:
    """Sizes that capture never saw, nothing at all included, and atoms so close that they repel each other."""
    close = bulk("Si", "diamond", 3.9, cubic=True)
    close.symbols[::3] = "Ge"
    close.rattle(0.1, seed=4)
    crystal = bulk("Si", "diamond", 5.43, cubic=True)
    crystal.symbols = "Si5Ge3"
    crystal.rattle(0.1, seed=5)
    pair = Atoms("SiGe", [(0, 0, 0), (0, 0, 2.4)])
    return {
        **probe_structures(("Si", "Ge"), seed=9),
        "nothing": Atoms(),
        "pair": pair,
        "close": close,
        "larger": crystal.repeat((3, 2, 2)),
    }


def model_in(path: Path, name: str = "onnx") -> onnx.ModelProto:
    return onnx.load_from_string(read_artifact(path).payloads[name])


@pytest.fixture(params=["onnx_artifact", "onnx_float32"])
def either(request: pytest.FixtureRequest) -> Path:
    """In both precisions."""
    path: Path = request.getfixturevalue(request.param)
    return path


def test_onnx_equals_eager_at_every_size(either: Path) -> None:
    ours, eager = artifact.load(either, "onnx"), artifact.load(either, "eager")
    tolerance = PRECISIONS[ours.facts.precision].parity
    check(parity("onnx", "eager", compare(ours, eager, structures()), tolerance))
    batch = collate([graph_from_atoms(atoms, CUTOFF) for atoms in structures().values()])
    new, old = ours.evaluate(batch), eager.evaluate(batch)
    torch.testing.assert_close(new.energies, old.energies, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(new.edge_forces, old.edge_forces, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(new.uncertainty, old.uncertainty, rtol=10 * tolerance, atol=tolerance)


def test_embeddings_are_those_of_the_model(either: Path) -> None:
    graph = graph_from_atoms(structures()["pair"], CUTOFF)
    ours, eager = (artifact.load(either, name).embeddings(graph) for name in ("onnx", "eager"))
    assert list(ours) == list(eager) == ["composition", "structure", "interaction"]
    for name, features in eager.items():
        torch.testing.assert_close(ours[name], features, rtol=1e-4, atol=1e-5)


def test_the_same_bits_on_any_number_of_threads(either: Path) -> None:
    """Large enough that ONNX Runtime shares the work; sums by scatter and, in float64, exponentials differ here."""
    potential = artifact.load(either, "onnx")
    crystal = bulk("Si", "diamond", 5.43, cubic=True).repeat(4)
    crystal.symbols[::3] = "Ge"
    crystal.rattle(0.1, seed=1)
    graph = graph_from_atoms(crystal, CUTOFF)
    threads, first = torch.get_num_threads(), potential.evaluate(graph)
    try:
        for n in (1, 2, 4):
            torch.set_num_threads(n)
            for _ in range(20):
                again = potential.evaluate(graph)
                assert torch.equal(again.energies, first.energies)
                assert torch.equal(again.edge_forces, first.edge_forces)
    finally:
        torch.set_num_threads(threads)


def test_energy_forces_virial_and_stress_are_inside(either: Path) -> None:
    """For programs that take the model alone; a batch with a molecule, whose stress is not a number."""
    graph = collate([graph_from_atoms(structures()[name], CUTOFF) for name in ("triclinic", "molecule", "one atom")])
    precision = read_artifact(either).metadata.facts.precision
    call = runner(read_artifact(either).payloads["onnx"], precision)
    found = call({name: tensor.numpy() for name, tensor in onnx_inputs(graph).items()}, DERIVED)
    energies, edge_forces, *_ = artifact.load(either, "eager").evaluate(graph)
    expected = {
        "energy": derivatives.energy(energies, graph),
        "forces": derivatives.forces(edge_forces, graph),
        "virial": derivatives.virial(edge_forces, graph),
        "stress": derivatives.stress(edge_forces, graph),
    }
    tolerance = PRECISIONS[precision].parity
    for name, array in zip(DERIVED, found, strict=True):
        close = {"rtol": tolerance, "atol": tolerance * float(expected[name].nan_to_num().abs().max())}
        torch.testing.assert_close(torch.from_numpy(array), expected[name], equal_nan=True, **close)
    assert np.isnan(found[3][1:]).all()
    assert np.isfinite(found[3][0]).all()


def test_no_sum_by_scatter_is_left(onnx_artifact: Path) -> None:
    for name in ("onnx", "onnx-positions"):
        assert not [n.op_type for n in model_in(onnx_artifact, name).graph.node if n.op_type.startswith("Scatter")]


def test_a_sum_by_scatter_is_refused() -> None:
    def summed(values: Tensor, index: Tensor) -> tuple[Tensor, ...]:
        return (scatter_sum(values, index, 3),)

    example = {"values": torch.rand(5, 2), "index": torch.tensor([0, 2, 2, 1, 0])}
    with pytest.raises(UnusableError, match=r"sums by Scatter.* number of threads"):
        to_onnx(summed, example, {}, ["sum"])


def test_a_sum_for_which_there_is_no_table_is_refused() -> None:
    graph = graph_from_atoms(structures()["pair"], CUTOFF)

    def by_element(numbers: Tensor, *_rest: Tensor) -> tuple[Tensor, ...]:
        return (scatter_sum(torch.ones(numbers.shape[0]), numbers, 119),)

    with pytest.raises(UnusableError, match="no table"):
        without_scatter(make_fx(by_element)(*flat_inputs(graph)))


@pytest.mark.parametrize("n_rows", [1, 4, 6])
def test_a_padded_table_sums_like_a_scatter(n_rows: int) -> None:
    """Rows that no index names, and repeated ones, in whatever order."""
    index = torch.tensor([3, 0, 3, 1, 3, 0]) % n_rows
    values = torch.arange(12.0).view(6, 2)
    table = padded_table(index, n_rows)
    torch.testing.assert_close(gather_sum(values, table), scatter_sum(values, index, n_rows))
    torch.testing.assert_close(gather_sum(values.T, table, 1), scatter_sum(values, index, n_rows).T)
    assert padded_table(index[:0], n_rows).tolist() == [[0]] * n_rows


def test_numbers_keep_their_digits() -> None:
    """A third, as float32, is wrong in the eighth digit."""

    def scaled(x: Tensor) -> tuple[Tensor, ...]:
        return (x * (1 / 3) + torch.clamp(x, min=0.1, max=0.7) - x**0.3,)

    x = torch.linspace(0.05, 1.0, 7, dtype=torch.float64)
    model = to_onnx(scaled, {"x": x}, {"x": {0: "N"}}, ["y"])
    (y,) = runner(model.SerializeToString(), "float64")({"x": x.numpy()}, ("y",))
    torch.testing.assert_close(torch.from_numpy(y), scaled(x)[0], rtol=1e-15, atol=1e-15)

    def leaky(x: Tensor) -> tuple[Tensor, ...]:
        return (torch.nn.functional.leaky_relu(x, 0.1),)

    with pytest.raises(UnusableError, match=r"leaky_relu.* holds 0.1, which ONNX would round"):
        to_onnx(leaky, {"x": x}, {"x": {0: "N"}}, ["y"])


def test_the_model_says_what_it_is_and_not_where_it_was_made(onnx_artifact: Path) -> None:
    facts = read_artifact(onnx_artifact).metadata.facts
    for name in ("onnx", "onnx-positions"):
        model = model_in(onnx_artifact, name)
        said = {p.key: p.value for p in model.metadata_props}
        assert said["elements"] == "Si Ge"
        assert float(said["cutoff"]) == CUTOFF
        assert said["precision"] == facts.precision
        assert "Å" in said["units"]
        assert "(N)" in said["inputs"]
        assert str(Path(torch.__file__).parent).encode() not in model.SerializeToString()
    dims = {i.name: i.type.tensor_type.shape.dim for i in model_in(onnx_artifact).graph.input}
    sizes = {name: [d.dim_param or d.dim_value for d in of_input] for name, of_input in dims.items()}
    assert sizes["edge_index"] == [2, "E"]
    assert sizes["edges_of_centre"] == ["N", "C"]
    details = {p.backend: p.details for p in read_artifact(onnx_artifact).metadata.payloads}
    assert details["onnx"]["opset"] == details["onnx-positions"]["opset"] == model_in(onnx_artifact).opset_import[0].version
    assert details["onnx"]["onnx"] == onnx.__version__


def test_onnx_runs_on_one_rank_and_only_when_asked_for(onnx_artifact: Path) -> None:
    assert "onnx" not in PREFERENCE
    potential = artifact.load(onnx_artifact, "onnx")
    graph = graph_from_atoms(structures()["pair"], CUTOFF)
    with pytest.raises(UserError, match="onnx form of this model runs on one rank only"):
        potential.evaluate(graph._replace(owned=torch.tensor([True, False])))


def test_without_its_libraries_it_says_what_to_install(onnx_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"onnx not used: needs ONNX Runtime; pip install 'triforces-deploy\[onnx\]'"):
        artifact.load(onnx_artifact, "onnx")
    with pytest.raises(UnusableError, match="pip install"):
        to_onnx(lambda x: (x,), {"x": torch.zeros(1)}, {}, ["y"])


def test_what_is_no_model_is_refused_in_one_line(onnx_artifact: Path) -> None:
    with pytest.raises(UnusableError, match=r"^ONNX Runtime refuses the model: .*"):
        runner(b"no model", "float64")


def test_cuda_multiplies_with_all_digits_unless_told_otherwise() -> None:
    assert providers(["CPUExecutionProvider"], "float32") == ["CPUExecutionProvider"]
    both = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    assert providers(both, "float32") == [("CUDAExecutionProvider", {"use_tf32": 0}), "CPUExecutionProvider"]
    assert providers(both, "tf32")[0] == ("CUDAExecutionProvider", {"use_tf32": 1})


def test_scatter_with_a_reduction_is_found_wherever_it_hides() -> None:
    node = onnx.helper.make_node("ScatterElements", ["x", "i", "u"], ["y"], reduction="add")
    branch = onnx.helper.make_graph([node], "branch", [], [onnx.helper.make_tensor_value_info("y", 1, [1])])
    outer = onnx.helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch)
    for nodes in ([node], [outer]):
        graph = onnx.helper.make_graph(nodes, "graph", [], [])
        with pytest.raises(UnusableError, match="ScatterElements"):
            refuse_scatter(onnx.helper.make_model(graph))
    plain = onnx.helper.make_node("ScatterND", ["x", "i", "u"], ["y"])
    refuse_scatter(onnx.helper.make_model(onnx.helper.make_graph([plain], "graph", [], [])))


def test_bf16_products_are_refused(tiny_artifact: Path) -> None:
    graph, facts = graph_from_atoms(structures()["pair"], CUTOFF), read_artifact(tiny_artifact).metadata.facts
    module = make_fx(lambda *tensors: tensors[2])(*flat_inputs(graph))
    with pytest.raises(UnusableError, match="bf16"):
        lower(Captured(module, graph, ("energies",), dataclasses.replace(facts, precision="bf16"), 0.0, 0.0))


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_few_rows_and_many_threads_give_the_same_bits(precision: str) -> None:
    """Products of the width of a real model, pieces of a weight, sums of fewer rows than threads, exponentials."""
    dtype = PRECISIONS[precision].dtype
    weight = torch.rand(256, 3 * 1024, generator=torch.Generator().manual_seed(0)).to(dtype) - 0.5

    def wide(x: Tensor, table: Tensor) -> tuple[Tensor, ...]:
        first, _, third = weight.split(1024, dim=1)
        y = torch.nn.functional.silu(x @ first) @ third.t()
        return (gather_sum(y, table), (y.view(-1, 16, 16) * y.view(-1, 16, 16).exp()).sum(1))

    x = torch.rand(7, 256, generator=torch.Generator().manual_seed(1)).to(dtype) - 0.5
    table = padded_table(torch.tensor([0, 2, 2, 0, 2, 1, 2]), 3)
    shapes = {"x": {0: "N"}, "table": {0: "G", 1: "A"}}
    call = runner(to_onnx(wide, {"x": x, "table": table}, shapes, ["y", "z"]).SerializeToString(), precision)
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 4, 16):
            torch.set_num_threads(n)
            results.append(call({"x": x.numpy(), "table": table.numpy()}, ("y", "z")))
    finally:
        torch.set_num_threads(threads)
    close = {"rtol": 1e-12, "atol": 1e-12} if precision == "float64" else {"rtol": 1e-4, "atol": 1e-3}
    for y, expected in zip(results[0], wide(x, table), strict=True):
        torch.testing.assert_close(torch.from_numpy(y), expected, **close)
    for other in results[1:]:
        for y, first_y in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(y, first_y)
