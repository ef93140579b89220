"""Each term against a closed formula, numpy, or a constant worked out elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from triforces_deploy.training.objectives import sigreg as module
from triforces_deploy.training.objectives.across import BatchNorm
from triforces_deploy.training.objectives.barlow import barlow
from triforces_deploy.training.objectives.denoising import denoising_loss
from triforces_deploy.training.objectives.lejepa import invariance
from triforces_deploy.training.objectives.sigreg import directions, quadrature, sigreg
from triforces_deploy.training.objectives.simsiam import negative_cosine

ALONG = torch.ones(1, 1, dtype=torch.float64)
"""The one direction there is in one dimension."""


def statistic(values: Tensor) -> float:
    """T of numbers (n,), divided by n."""
    return float(sigreg(values[:, None].double(), ALONG)) / len(values)


def test_the_weights_of_the_quadrature() -> None:
    expected = [
        .1875, .368466, .349538, .320129, .283065, .241646, .199161, .158475, .121745, .090296, .064658, .044700, .029835,
        .019225, .011961, .007184, .002083,
    ]  # fmt: skip
    weight = quadrature(ALONG)[1]
    np.testing.assert_allclose(weight.numpy(), expected, atol=6e-7)
    assert float(weight.sum()) == pytest.approx(2.499666, abs=6e-7)


@pytest.mark.parametrize(("value", "expected"), [(0.0, 0.402048), (1.0, 1.186006), (2.0, 2.642852)])
def test_the_statistic_of_a_constant(value: float, expected: float) -> None:
    assert statistic(torch.full((7,), value)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("sigma", "expected"), [(0.5, 0.151191), (2.0, 0.236091)])
def test_the_statistic_of_normal_distributions_of_wrong_width(sigma: float, expected: float) -> None:
    """Of their quantiles, which is what many draws would tend to."""
    quantiles = torch.special.ndtri((torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000)
    assert statistic(sigma * quantiles) == pytest.approx(expected, abs=1e-6)


def test_the_expectation_for_standard_normal_embeddings() -> None:
    """1.05246 for any n; 4,096 directions of one set of embeddings would be correlated, so many sets of them."""
    generator = torch.Generator().manual_seed(0)
    for n in (2, 32):
        draws = torch.randn((20_000, n), generator=generator, dtype=torch.float64)
        found = torch.stack([sigreg(some.T.contiguous(), torch.eye(1000, dtype=torch.float64)) for some in draws.split(1000)])
        assert float(found.mean()) == pytest.approx(1.05246, abs=4 * float(found.std()) / 20**0.5)


def test_sigreg_by_the_formula_in_numpy() -> None:
    z = torch.randn((9, 5), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    along = directions(5, 33, 7, z)
    y, t = z.numpy() @ along.numpy(), np.linspace(0, 3, 17)
    normal = np.exp(-(t**2) / 2)
    distance = (np.cos(t[:, None, None] * y).mean(1) - normal[:, None]) ** 2 + np.sin(t[:, None, None] * y).mean(1) ** 2
    expected = 2 * 9 * np.trapezoid(normal[:, None] * distance, t, axis=0).mean()
    assert float(sigreg(z, along)) == pytest.approx(expected, rel=1e-12)


def test_sigreg_in_chunks_and_its_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn((6, 4), dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_(True)
    along = directions(4, 10, 0, z)
    at_once = sigreg(z, along)
    (whole,) = torch.autograd.grad(at_once, z)
    monkeypatch.setattr(module, "CHUNK", 20)  # three directions at a time
    assert torch.allclose(sigreg(z, along), at_once, rtol=1e-14)
    assert torch.autograd.gradcheck(lambda x: sigreg(x, along), z)
    torch.testing.assert_close(torch.autograd.grad(sigreg(z, along), z)[0], whole, rtol=1e-12, atol=1e-14)


def test_sigreg_of_one_embedding_is_nothing() -> None:
    assert float(sigreg(torch.ones(1, 1, dtype=torch.float64), ALONG)) == 0.0


def test_directions_are_unit_vectors_that_the_key_decides() -> None:
    one, two = (directions(128, 1024, key, ALONG) for key in (1, 2))
    assert torch.equal(one, directions(128, 1024, 1, ALONG))
    torch.testing.assert_close(one.norm(dim=0), torch.ones(1024, dtype=torch.float64))
    assert float((one * two).sum(0).abs().max()) < 0.6


def test_constants_of_invariance_and_denoising() -> None:
    assert float(invariance(torch.zeros(1, 2), torch.tensor([[2.0, 0.0]]))) == 1.0
    assert float(denoising_loss(torch.zeros(3, 3), torch.ones(3, 3))) == 3.0


def test_invariance_is_the_variance_across_views() -> None:
    a, b = torch.randn((2, 5, 3), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    expected = np.var(np.stack([a.numpy(), b.numpy()]), axis=0).sum(1).mean()
    assert float(invariance(a, b)) == pytest.approx(expected, rel=1e-14)


def test_barlow_by_the_formula_in_numpy() -> None:
    a, b = torch.randn((2, 12, 128), dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    both = np.concatenate([a.numpy(), b.numpy()])
    both = (both - both.mean(0)) / np.sqrt(both.var(0) + 1e-5)
    correlation = both[:12].T @ both[12:] / 12
    diagonal = np.diag(correlation)
    expected = ((1 - diagonal) ** 2).sum() + 0.32 * ((correlation**2).sum() - (diagonal**2).sum())
    assert float(barlow(a, b, 0.005)) == pytest.approx(expected, rel=1e-12)


def test_simsiam_is_a_cosine_whose_target_stands_still() -> None:
    p, z = torch.randn((2, 4, 3), dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    cosines = (p * z).sum(1) / (p.norm(dim=1) * z.norm(dim=1))
    for tensor in (p, z):
        tensor.requires_grad_(True)
    loss = negative_cosine(p, z)
    assert float(loss.detach()) == pytest.approx(-float(cosines.mean()), rel=1e-14)
    loss.backward()  # type: ignore[no-untyped-call]
    assert z.grad is None
    assert p.grad is not None
    assert float(p.grad.abs().max()) > 0.01


def test_the_norm_is_torchs() -> None:
    x = torch.randn((11, 4), dtype=torch.float64, generator=torch.Generator().manual_seed(6)) * 3 + 1
    ours, theirs = BatchNorm(4).double(), torch.nn.BatchNorm1d(4).double()
    with torch.no_grad():
        for parameter in (ours.weight, theirs.weight):
            assert parameter is not None
            parameter.copy_(torch.tensor([1.0, 2.0, 0.5, -1.0]))
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)
    assert torch.isfinite(ours(x[:1])).all()
