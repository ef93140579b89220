"""The kernels of a library: whether they compute what ours do, who decides, and what is said of it."""

from __future__ import annotations

import itertools
import re
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import cuequivariance
import numpy as np
import pytest
import torch
from cuequivariance_torch.primitives import segmented_polynomial, segmented_polynomial_uniform_1d
from torch import Tensor

from tests.contract import crystal
from tests.lammps.test_startup import GOOD
from tests.tiny import tiny_model
from triforces_deploy import artifact, checkpoint, kernels
from triforces_deploy.calculator import TriForcesCalculator
from triforces_deploy.config import BackboneConfig, ModelConfig
from triforces_deploy.errors import UserError
from triforces_deploy.export.exporting import ExportOptions, export
from triforces_deploy.lammps_plugin.startup import describe
from triforces_deploy.model import Model
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.nn import blocks, cue
from triforces_deploy.nn.couplings import coupling, expanded
from triforces_deploy.nn.equivariant import EdgeProducts, SymmetricContraction

CPU = torch.device("cpu")
OPTIONS = {
    "channels": 4,
    "l_hidden": 1,
    "l_max": 2,
    "correlation": [2, 3],
    "later": "density-residual",
    "n_bessel": 4,
    "radial_hidden": [8],
}


def mace() -> Model:
    """Two layers: the first sums by element, and both have polynomials."""
    torch.manual_seed(3)
    model = Model(ModelConfig(("C", "Si"), 4.0, BackboneConfig("mace", OPTIONS), None, None, (6,), head_skip=True))
    model.set_network_dtype(torch.float64)
    model.references[6], model.references[14] = -9e3, -4e3
    return model.eval().requires_grad_(False)


def imitation(*arguments: Any) -> list[Tensor]:
    """What the kernel that cuequivariance-torch calls "uniform_1d" does, from the same arguments."""
    extent, n_inputs, dims, segments = arguments[2], arguments[3], arguments[6], arguments[7]
    n_operands, operations, n_paths, first, first_c, indices, coefficients = arguments[12:19]
    inputs = [
        t[:, :, None] if dim == 0 else t.unflatten(1, (n, extent))
        for t, dim, n in zip(arguments[20], dims, segments, strict=False)
    ]
    sums: list[Any] = [0.0] * segments[n_inputs]
    start = 0
    for size, n, at, c in zip(n_operands, n_paths, first, first_c, strict=True):
        buffers = operations[start : start + size]
        assert buffers[-1] == n_inputs, "the result comes last"
        for p in range(n):
            *factors, to = indices[at + p * size : at + (p + 1) * size]
            product: Any = coefficients[c + p]
            for buffer, segment in zip(buffers, factors, strict=False):
                product = product * inputs[buffer][:, segment]
            sums[to] = sums[to] + product
        start += size
    return [torch.cat(sums, dim=1)]


@pytest.fixture
def _a_cpu_with_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library finds kernels for the CPU: ours above. All of its own preparations are real."""
    ops = ModuleType(cue.KERNELS)
    ops.__spec__ = ModuleSpec(cue.KERNELS, None)
    monkeypatch.setitem(sys.modules, cue.KERNELS, ops)
    monkeypatch.setitem(cue.METHODS, "cpu", "uniform_1d")
    monkeypatch.setattr(segmented_polynomial, "HAS_CUE_OPS", True)
    monkeypatch.setattr(segmented_polynomial_uniform_1d, "uniform_1d", imitation)
    for number, name in enumerate(("AUTO", "SHARED", "INDEXED", "BATCHED"), start=-2):
        monkeypatch.setattr(segmented_polynomial_uniform_1d, f"BATCH_DIM_{name}", number, raising=False)
    monkeypatch.setenv(kernels.VARIABLE, "auto")


with_kernels = pytest.mark.usefixtures("_a_cpu_with_kernels")


@pytest.mark.parametrize("degrees", [d for d in itertools.product(range(4), repeat=3) if sum(d) % 2 == 0])
def test_our_couplings_are_theirs(degrees: tuple[int, int, int]) -> None:
    """In the same basis, up to a factor: theirs is made by another algorithm."""
    if not abs(degrees[0] - degrees[1]) <= degrees[2] <= degrees[0] + degrees[1]:
        return
    (theirs,) = cuequivariance.clebsch_gordan(*(cuequivariance.SO3(degree) for degree in degrees))
    ours = coupling(*degrees).transpose(1, 2, 0)
    factor = float((theirs * ours).sum() / (ours * ours).sum())
    np.testing.assert_allclose(theirs, factor * ours, atol=1e-13)
    assert abs(factor) > 0.1


@pytest.mark.parametrize("order", [2, 3])
def test_our_polynomials_are_theirs(order: int) -> None:
    """Their polynomials of a degree are combinations of ours, and as many of them are independent."""
    rng = np.random.default_rng(order)
    l_max, l_out, count = 2, 1, 60
    irreps = [cuequivariance.Irreps("O3", " + ".join(f"1x{k}{'eo'[k % 2]}" for k in range(top + 1))) for top in (l_max, l_out)]
    theirs = cuequivariance.descriptors.symmetric_contraction(*irreps, (order,))
    x, own = rng.normal(size=(count, (l_max + 1) ** 2)), SymmetricContraction(l_max, l_out, order, 1, 1)
    units = np.eye(theirs.inputs[0].dim)
    values = np.stack([theirs(np.broadcast_to(w, (count, len(w))), x)[0] for w in units])  # (weights, points, components)
    for degree in range(l_out + 1):
        component = degree**2 + degree
        of_ours = [(m, c) for m, c in expanded(own.plan, degree) if len(m) == order]
        ours = np.stack([x[:, m].prod(1) @ c[degree] for m, c in of_ours], axis=1)
        wanted = values[:, :, component].T
        found, _, rank, _ = np.linalg.lstsq(ours, wanted, rcond=None)
        np.testing.assert_allclose(ours @ found, wanted, atol=1e-11)
        assert rank == ours.shape[1] == np.linalg.matrix_rank(wanted)


@with_kernels
@pytest.mark.parametrize(("l_max", "l_out", "order"), [(3, 1, 3), (2, 2, 4), (1, 0, 1)])
def test_their_kernels_take_our_tables_and_layout(l_max: int, l_out: int, order: int) -> None:
    """What is checked and flattened for the kernel is what ours compute, derivatives and no rows included."""
    torch.manual_seed(order)
    own = SymmetricContraction(l_max, l_out, order, 2, 3).double().requires_grad_(False)
    theirs = cue.CueContraction(own, CPU)
    products = EdgeProducts(l_out, l_max, 3)
    joined = cue.CueEdgeProducts(products, CPU)
    for n in (5, 1, 0):
        elements = torch.eye(2, dtype=torch.float64)[torch.arange(n) % 2]
        x = torch.randn(n, (l_max + 1) ** 2, 3, dtype=torch.float64, requires_grad=True)
        y = torch.randn(n, (l_max + 1) ** 2, dtype=torch.float64, requires_grad=True)
        w = torch.randn(n, len(products.paths), 3, dtype=torch.float64, requires_grad=True)
        edges = x[:, : (l_out + 1) ** 2], y, w
        pairs = [(theirs(x, elements), own(x, elements)), *zip(joined(*edges), products(*edges), strict=True)]
        for found, expected in pairs:
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        found, expected = (torch.autograd.grad(sum(pair[k].sin().sum() for pair in pairs), (x, y, w)) for k in range(2))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("in_blocks", [False, True])
def test_a_model_has_the_same_energies_and_forces_with_the_library(monkeypatch: pytest.MonkeyPatch, in_blocks: bool) -> None:
    monkeypatch.setenv(kernels.VARIABLE, "cuequivariance")
    own = mace()
    model, said = kernels.equipped(own, "float64")
    assert re.search(r"^cuEquivariance 0\..* in plain PyTorch \(verified, ", said)
    assert [type(m) for m in model.modules()].count(cue.CueContraction) == 2
    assert not any(isinstance(m, cue.CueContraction | cue.CueEdgeProducts) for m in own.modules()), "the model itself changed"
    graph = graph_from_atoms(crystal(), 4.0)
    expected = own.run(graph)
    if in_blocks:
        with blocks.using(0, block_bytes=0):
            found = model.run(graph)
    else:
        found = model.run(graph)
    for a, b in zip(found, expected, strict=True):
        assert float((a - b).abs().max()) <= 1e-12 * float(b.abs().max())
    assert float(expected[1].abs().max()) > 1e-3


@with_kernels
def test_auto_takes_kernels_that_agree() -> None:
    model, said = kernels.equipped(mace(), "float64")
    assert any(isinstance(m, cue.CueEdgeProducts) for m in model.modules())
    assert re.search(rf"^{re.escape(cue.label())} \(verified, ", said)


def differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """By so little that only the comparison can tell."""
    monkeypatch.setattr(cue.CueContraction, "forward", lambda self, x, elements: self.own(x, elements) * (1 + 1e-7))


def not_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cue.CueEdgeProducts, "forward", lambda self, *t: tuple(p * float("nan") for p in self.own(*t)))


def fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(*_: Any) -> Tensor:
        raise RuntimeError("CUDA error: no kernel image\nis available")

    monkeypatch.setattr(cue.CueContraction, "forward", forward)


def not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cue, "find_spec", lambda name: None)


def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cue, "find_spec", lambda name: None if name == cue.KERNELS else object())


def not_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library then takes plain PyTorch by itself."""
    monkeypatch.setattr(segmented_polynomial, "HAS_CUE_OPS", False)


@with_kernels
@pytest.mark.filterwarnings("ignore:cuequivariance_ops_torch is not available")
@pytest.mark.parametrize(
    ("trouble", "why"),
    [
        (differ, r"differs from ours by \de-0\d relative, 1e-10 is allowed"),
        (not_a_number, "differs from ours by nan"),
        (fail, "failed: RuntimeError: CUDA error: no kernel image"),
        (not_there, "cuEquivariance is not installed"),
        (without_kernels, "kernels are not installed: cuequivariance-ops-torch-cu12 or -cu13"),
        (not_loading, "kernels do not load here"),
    ],
)
def test_what_cannot_be_used_is_not_and_the_reason_is_told(monkeypatch: pytest.MonkeyPatch, trouble: Any, why: str) -> None:
    own = mace()
    trouble(monkeypatch)
    model, said = kernels.equipped(own, "float64")
    assert model is own
    assert re.search(f"^own \\(.*{why}", said)
    monkeypatch.setenv(kernels.VARIABLE, "cuequivariance")
    with pytest.raises(UserError, match=f"^TFDEPLOY_KERNELS=cuequivariance: .*{why}") as error:
        kernels.equipped(own, "float64")
    assert "\n" not in str(error.value)


def test_the_variable_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    assert (kernels.wanted(CPU), kernels.wanted(torch.device("cuda"))) == ("own", "auto")
    assert kernels.equipped(mace(), "float64")[1] == "own"
    monkeypatch.setenv(kernels.VARIABLE, "own")
    assert kernels.wanted(torch.device("cuda")) == "own"
    assert kernels.equipped(mace(), "float64")[1] == "own (TFDEPLOY_KERNELS=own)"
    monkeypatch.setenv(kernels.VARIABLE, "auto")
    assert kernels.equipped(mace(), "float64")[1] == "own (there are no others for cpu)"
    monkeypatch.setenv(kernels.VARIABLE, "fastest")
    with pytest.raises(UserError, match="TFDEPLOY_KERNELS=fastest: expected own, cuequivariance, auto"):
        kernels.equipped(mace(), "float64")
    with pytest.raises(UserError, match="TFDEPLOY_KERNELS=fastest"):
        kernels.of_compiled("aoti")


def test_a_backbone_without_such_products_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.VARIABLE, "cuequivariance")
    with pytest.raises(UserError, match="cuEquivariance has no part in this backbone"):
        kernels.equipped(tiny_model(), "float64")


def test_the_start_up_block_and_the_calculator_name_the_kernels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "mace.ckpt", tmp_path / "mace.pt"
    checkpoint.save(source, mace(), {"data": "random weights"})
    export(source, out, ExportOptions(backends=()))
    atoms, energies, calls = crystal(), [], []
    forward = cue.CueContraction.forward
    monkeypatch.setattr(cue.CueContraction, "forward", lambda *t: calls.append(len(t[1])) or forward(*t))
    for choice, expected in ((None, "own"), ("own", "own (TFDEPLOY_KERNELS=own)"), ("cuequivariance", "cuEquivariance 0.")):
        if choice is not None:
            monkeypatch.setenv(kernels.VARIABLE, choice)
        potential = artifact.load(out)
        (line,) = [line for line in describe(potential, "mace.pt", GOOD, 1) if line.startswith("  kernels: ")]
        assert line.startswith(f"  kernels: {expected}")
        capsys.readouterr()
        calculator = TriForcesCalculator(potential)
        assert capsys.readouterr().err == ("" if choice is None else f"triforces-deploy:{line[1:]}\n")
        calculator.calculate(atoms)
        energies.append(calculator.results["energy"])
    np.testing.assert_allclose(energies, energies[0], rtol=1e-13)
    assert calls[:2] == [kernels.COMPARED[0]] * 2, "nothing was compared"
    assert calls[-2:] == [len(atoms)] * 2, "the library did not evaluate the crystal"
