"""Radial functions, envelopes and spherical harmonics against closed forms, scipy, quadrature and the public Orb code."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import sph_harm_y, spherical_jn
from torch import Tensor

from triforces_deploy.nn.radial import bessel, cosine_envelope, lengths, polynomial_envelope
from triforces_deploy.nn.spherical import L_MAX, e3nn_component, spherical_harmonics

PIECES = Path(__file__).parent / "fixtures" / "orb_v3" / "pieces.npz"


def random_units(n: int) -> Tensor:
    vectors = torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return vectors / vectors.norm(dim=1, keepdim=True)


def derivatives(function: Callable[[Tensor], Tensor], r: float) -> list[float]:
    """Value and the first three derivatives."""
    x = torch.tensor(r, dtype=torch.float64, requires_grad=True)
    found = [function(x[None])[0]]
    for _ in range(3):
        found.append(torch.autograd.grad(found[-1], x, create_graph=True)[0])
    return [float(y.detach()) for y in found]


def test_bessel_is_the_spherical_bessel_function() -> None:
    r = np.linspace(0.3, 6.0, 50)
    expected = [math.sqrt(2 / 6.0) * (k * math.pi / 6.0) * spherical_jn(0, k * math.pi * r / 6.0) for k in range(1, 9)]
    np.testing.assert_allclose(bessel(torch.from_numpy(r), 6.0, 8), np.stack(expected, axis=1), atol=1e-14)


def test_bessel_is_orthonormal_with_weight_r_squared() -> None:
    nodes, weights = np.polynomial.legendre.leggauss(60)
    r = torch.from_numpy(3.0 * (nodes + 1.0))
    basis = bessel(r, 6.0, 8).numpy()
    gram = np.einsum("qa,qb,q->ab", basis, basis, 3.0 * weights * r.numpy() ** 2)
    np.testing.assert_allclose(gram, np.eye(8), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_vector_gives_limits_and_no_nan(dtype: torch.dtype) -> None:
    vectors = torch.zeros(1, 3, dtype=dtype, requires_grad=True)
    r = lengths(vectors)
    basis = bessel(r, 6.0, 8)
    limit = math.sqrt(2 / 6.0) * np.arange(1, 9) * math.pi / 6.0
    np.testing.assert_allclose(basis.detach()[0], limit, rtol=1e-6)
    outputs = (basis * polynomial_envelope(r, 6.0, 4)[:, None]).sum() + spherical_harmonics(vectors / r[:, None], 3).sum()
    (first,) = torch.autograd.grad(outputs, vectors, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), vectors)
    assert torch.isfinite(first).all()
    assert torch.isfinite(second).all()


def test_no_edges_give_no_rows() -> None:
    none = torch.zeros(0, 3, requires_grad=True)
    r = lengths(none)
    assert bessel(r, 6.0, 8).shape == (0, 8)
    assert spherical_harmonics(none / r[:, None], 3).shape == (0, 16)
    polynomial_envelope(r, 6.0, 4).sum().backward()
    assert none.grad is not None


def test_lengths_are_norms() -> None:
    vectors = torch.tensor([[3.0, 4.0, 12.0], [1e-3, 0.0, 0.0]], dtype=torch.float64)
    np.testing.assert_allclose(lengths(vectors), [13.0, 1e-3], rtol=1e-15)


@pytest.mark.parametrize("p", [2, 4, 6])
def test_polynomial_envelope_is_the_published_polynomial(p: int) -> None:
    x = np.linspace(0.0, 1.0, 31)
    published = 1 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)
    np.testing.assert_allclose(polynomial_envelope(torch.from_numpy(5.0 * x), 5.0, p), published, atol=1e-13)
    assert float(polynomial_envelope(torch.tensor([5.1]), 5.0, p)) == 0.0


def test_polynomial_envelope_takes_a_cutoff_per_edge() -> None:
    r = torch.tensor([1.0, 2.0, 3.0])
    both = polynomial_envelope(r, torch.tensor([2.0, 4.0, 2.0]), 4)
    np.testing.assert_allclose(both, [1 - 15 / 16 + 24 / 32 - 10 / 64] * 2 + [0.0], atol=1e-6)


def test_polynomial_envelope_ends_with_two_derivatives_and_no_third() -> None:
    at_cutoff = derivatives(lambda r: polynomial_envelope(r, 6.0, 4), 6.0 - 1e-9)
    np.testing.assert_allclose(at_cutoff[:3], 0.0, atol=1e-6)
    assert abs(at_cutoff[3]) > 0.1


def test_cosine_envelope_against_tabulated_values() -> None:
    r = torch.tensor([2.0, 2.5, 3.0, 4.0, 5.0], dtype=torch.float64)
    np.testing.assert_allclose(cosine_envelope(r, 3.0), [0.25, 0.066987, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(cosine_envelope(r, 4.5), [0.586824, 0.413176, 0.25, 0.030154, 0], atol=1e-6)


def real_harmonic(degree: int, m: int, unit: np.ndarray) -> np.ndarray:
    """From scipy's complex ones, whose Condon-Shortley sign is taken out."""
    theta, phi = np.arccos(unit[:, 2]), np.arctan2(unit[:, 1], unit[:, 0])
    value = sph_harm_y(degree, abs(m), theta, phi) * (-1) ** m
    if m == 0:
        return value.real
    return math.sqrt(2.0) * (value.real if m > 0 else value.imag)


def test_spherical_harmonics_are_scipys() -> None:
    unit = random_units(40)
    found = spherical_harmonics(unit, L_MAX).numpy()
    columns = [real_harmonic(degree, m, unit.numpy()) for degree in range(L_MAX + 1) for m in range(-degree, degree + 1)]
    np.testing.assert_allclose(found, np.stack(columns, axis=1), atol=1e-13)


def test_spherical_harmonics_of_one_direction() -> None:
    """Values worked out by hand for (1, 2, 2)/3, degrees 1 and 2."""
    found = spherical_harmonics(torch.tensor([[1.0, 2.0, 2.0]], dtype=torch.float64) / 3.0, 2)[0, 1:]
    first = math.sqrt(3 / (4 * math.pi)) * np.array([2, 2, 1]) / 3
    second = math.sqrt(15 / (4 * math.pi)) * np.array([2, 4, (3 * 4 - 9) / (2 * math.sqrt(3)), 2, (1 - 4) / 2]) / 9
    np.testing.assert_allclose(found, np.concatenate([first, second]), atol=1e-15)


def test_spherical_harmonics_at_the_poles_have_derivatives() -> None:
    poles = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: spherical_harmonics(v / v.norm(dim=1, keepdim=True), 4), poles)


def test_e3nn_component_is_orbs() -> None:
    with np.load(PIECES) as pieces:
        vectors, expected = pieces["harmonics/vectors"], pieces["harmonics/component"]
    unit = torch.from_numpy(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    np.testing.assert_allclose(e3nn_component(unit, 4), expected, atol=1e-13)
