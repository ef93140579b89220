"""The named precisions do what they say, only inside their block, and only where the hardware gains from them."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.tiny import TINY, tiny_model
from triforces_deploy import artifact, derivatives
from triforces_deploy.errors import UserError
from triforces_deploy.export import exporting
from triforces_deploy.export.certify.dynamics import refuse_drift
from triforces_deploy.export.exporting import ExportOptions, export
from triforces_deploy.export.probes import probe_structures
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.nn import blocks
from triforces_deploy.nn.linear import linear
from triforces_deploy.potential import Potential
from triforces_deploy.precision import PRECISIONS, available, multiplying


@pytest.fixture
def with_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any CPU computes bf16, only not faster."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)


def forces(precision: str) -> torch.Tensor:
    model = tiny_model()
    model.set_network_dtype(PRECISIONS[precision].dtype)
    potential = Potential(dataclasses.replace(model.facts(), precision=precision), model.run, "eager")
    graph = graph_from_atoms(probe_structures(TINY.elements)["triclinic"], TINY.cutoff)
    return derivatives.forces(potential.evaluate(graph).edge_forces, graph)


def test_bf16_rounds_the_factors_of_every_product_and_nothing_else() -> None:
    torch.manual_seed(0)
    a, b, bias = torch.randn(40, 30), torch.randn(30, 20), torch.randn(20)
    exact = a.bfloat16().double() @ b.bfloat16().double()
    with multiplying("bf16", casting=True):
        product, linear, sums = a @ b, torch.addmm(bias, a, b), a + a
        batched = torch.bmm(a[None], b[None])[0]
    for found in (product, batched, linear - bias):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), exact, rtol=2**-7, atol=1e-2)
        assert (found.double() - a.double() @ b.double()).abs().max() > 1e-3
    assert torch.equal(sums, a + a)
    assert torch.equal(a @ b, torch.mm(a, b))
    assert (a @ b - product).abs().max() > 1e-3


def test_bf16_rounds_the_backward_pass_too() -> None:
    weight = torch.linspace(1, 2, 64).reshape(8, 8)
    x = torch.ones(8, 8, requires_grad=True)
    with multiplying("bf16", casting=True):
        (x @ weight).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad[0], weight.bfloat16().double().sum(1).bfloat16().float(), rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["float64", "float32", "bf16"])
def test_forces_are_as_far_from_float64_as_the_precision_promises(precision: str) -> None:
    exact = forces("float64")
    error = float((forces(precision) - exact).abs().max() / exact.abs().max())
    assert error <= PRECISIONS[precision].rounding
    assert (error > 1e-4) == (precision == "bf16")
    assert (error > 1e-9) == (precision != "float64")


def test_the_switch_of_tf32_is_put_back_after_an_error_too() -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    seen = []

    def multiply() -> None:
        with multiplying("tf32", casting=True):
            seen.append(torch.backends.cuda.matmul.fp32_precision)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        multiply()
    assert seen == ["tf32"]
    assert torch.backends.cuda.matmul.fp32_precision == before != "tf32"


def test_what_the_hardware_lacks_is_said_in_one_line(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert available("float64") is available("float32") is None
    for name, needed in (("tf32", "CUDA GPU"), ("bf16", "AVX512-BF16")):
        with pytest.raises(UserError, match=f"--precision {name}: .*{needed}.*use float32"):
            export(tiny_checkpoint, tmp_path / "x.pt", ExportOptions(precision=name, backends=()))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert available("tf32") is not None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert available("tf32") is available("bf16") is None


@pytest.mark.usefixtures("with_bf16")
def test_the_compiled_form_has_the_casts_inside(tiny_checkpoint: Path, tmp_path: Path) -> None:
    made = export(tiny_checkpoint, tmp_path / "bf16.pt", ExportOptions(precision="bf16", backends=("torchscript",)))
    against = {(p.backend, p.reference): p.forces for p in made.metadata.parity}
    assert against["torchscript", "eager bf16"] <= PRECISIONS["bf16"].parity
    assert 1e-4 < against["torchscript", "eager float64"] <= PRECISIONS["bf16"].rounding
    assert artifact.load(tmp_path / "bf16.pt").backend == "torchscript"


def test_a_model_that_drifts_more_than_allowed_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "refuse_drift", partial(refuse_drift, seconds=0.0))
    monkeypatch.setattr(exporting, "defect", lambda crystal: crystal)  # eight atoms instead of a supercell
    with pytest.raises(UserError, match=r"drifts by .* eV/atom/ps .* --max-drift allows 1e-15"):
        export(tiny_checkpoint, tmp_path / "x.pt", ExportOptions(backends=(), max_drift=1e-15))
    assert list(tmp_path.iterdir()) == []
    model = tiny_model()
    cell = probe_structures(TINY.elements)["primitive cell"]
    line = refuse_drift(Potential(model.facts(), model.run, "eager"), cell, 10.0, seconds=0.0)
    assert line.startswith("drift at constant energy: ")
    monkeypatch.setattr(exporting, "refuse_drift", lambda *_args: line)
    made = export(tiny_checkpoint, tmp_path / "x.pt", ExportOptions(backends=(), max_drift=10.0))
    assert made.metadata.facts.policies[-1] == line


def test_products_in_blocks_round_their_factors_too() -> None:
    """In float32 blocks multiply by another library; with bf16 what it is given is rounded as everywhere."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(40, 256, requires_grad=True), torch.randn(192, 256), torch.randn(192)
    with multiplying("bf16", casting=True), blocks.using(0):
        found = linear(x, weight, bias)
        (gradient,) = torch.autograd.grad(found.sum(), x)
    assert torch.equal(found, (x.bfloat16() @ weight.bfloat16().T).float() + bias)
    assert torch.equal(gradient, (torch.ones(40, 192).bfloat16() @ weight.bfloat16()).float())
    assert not torch.allclose(found, x @ weight.T + bias, rtol=1e-4)
