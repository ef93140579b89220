"""MACE's own promises: exact couplings, equivariance, and what is refused. Its numbers are tested in importing/test_mace.py."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import ortho_group

from tests.contract import NUMBERS, crystal
from triforces_deploy.backbones.mace import MACE, MACEConfig
from triforces_deploy.config import BackboneConfig, ModelConfig
from triforces_deploy.errors import UserError
from triforces_deploy.export.capture import capture
from triforces_deploy.model import Model
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.nn import blocks
from triforces_deploy.nn.couplings import couplings
from triforces_deploy.nn.equivariant import EdgeProducts, SymmetricContraction, of_degree
from triforces_deploy.nn.spherical import spherical_harmonics
from triforces_deploy.nn.wigner import wigner_3j
from triforces_deploy.payloads.base import flat_inputs

Array = NDArray[np.float64]
L = 3
POINTS = torch.nn.functional.normalize(torch.randn(60, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))


def orthogonal(seed: int) -> Array:
    """A random rotation or, as often, a rotation with an inversion."""
    return np.asarray(ortho_group.rvs(3, random_state=seed))


def matrices(transformation: Array) -> list[Array]:
    """D_l of a transformation, from Y_l(R r) = D_l Y_l(r) at many points."""
    before = spherical_harmonics(POINTS, L).numpy()
    after = spherical_harmonics(POINTS @ torch.from_numpy(transformation).T, L).numpy()
    return [np.linalg.lstsq(before[:, of_degree(k)], after[:, of_degree(k)], rcond=None)[0].T for k in range(L + 1)]


def transformed(x: torch.Tensor, of_degrees: list[Array]) -> torch.Tensor:
    """(N, (l_max+1)², K) features of the transformed structure."""
    blocks = x.split([2 * k + 1 for k in range(round(x.shape[1] ** 0.5))], dim=1)
    return torch.cat([torch.from_numpy(d) @ block for d, block in zip(of_degrees, blocks, strict=False)], dim=1)


@pytest.mark.parametrize("degrees", [d for d in itertools.product(range(5), repeat=3) if sum(d) % 2 == 0])
def test_even_symbols_are_integrals_of_three_harmonics(degrees: tuple[int, int, int]) -> None:
    if not abs(degrees[0] - degrees[1]) <= degrees[2] <= degrees[0] + degrees[1]:
        return
    z, weights = np.polynomial.legendre.leggauss(10)  # exact to degree 19, and 20 angles to order 19
    phi = np.arange(20) * np.pi / 10
    around = np.sqrt(1 - z**2)[:, None]
    sphere = np.stack([around * np.cos(phi), around * np.sin(phi), np.repeat(z[:, None], 20, axis=1)], axis=-1).reshape(-1, 3)
    harmonics = spherical_harmonics(torch.from_numpy(sphere), 4).numpy()
    a, b, c = (harmonics[:, of_degree(k)] for k in degrees)
    integral = np.einsum("s,sa,sb,sc->abc", np.repeat(weights, 20) * np.pi / 10, a, b, c)
    np.testing.assert_allclose(wigner_3j(*degrees), integral / np.linalg.norm(integral), atol=1e-14)


def test_all_symbols_are_invariant() -> None:
    rotation = orthogonal(1)
    d = matrices(rotation * np.linalg.det(rotation))
    for l1, l2, l3 in itertools.product(range(L + 1), repeat=3):
        if abs(l1 - l2) <= l3 <= l1 + l2:
            symbol = wigner_3j(l1, l2, l3)
            assert np.linalg.norm(symbol) == pytest.approx(1.0, abs=1e-14)
            np.testing.assert_allclose(np.einsum("am,bn,co,mno->abc", d[l1], d[l2], d[l3], symbol), symbol, atol=1e-13)


def test_there_are_as_many_polynomials_as_group_theory_says() -> None:
    """Multiplicities of L in the symmetric powers of 0 ⊕ 1 ⊕ … ⊕ l_max, from characters of rotations and inversions."""
    l_max, order = 3, 3
    angles = (np.arange(2000) + 0.5) * np.pi / 2000
    measure = (1 - np.cos(angles)) / len(angles)  # class function average over rotations
    parity = np.array([1.0, -1.0])

    def character(degree: int, power: int) -> Array:
        """(parities, angles) of x_l → D(power × angle), with the sign of inversion to that power."""
        m = np.arange(-degree, degree + 1)
        return (parity[:, None] ** (degree * power)) * np.cos(np.outer(m, power * angles)).sum(0)

    one, two, three = (sum(character(degree, k) for degree in range(l_max + 1)) for k in (1, 2, 3))
    symmetric = {1: one, 2: (one**2 + two) / 2, 3: (one**3 + 3 * one * two + 2 * three) / 6}
    plan = couplings(l_max, 2, order)
    for degree, length in itertools.product(range(3), (1, 2, 3)):
        expected = (measure * (symmetric[length] * character(degree, 1)).mean(0)).sum()
        assert sum(n == length for n, _ in plan.terms[degree]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_polynomials_and_edge_products_turn_with_their_features(seed: int) -> None:
    torch.manual_seed(seed)
    d = matrices(orthogonal(seed))
    elements = torch.eye(2, dtype=torch.float64)[[0, 1, 1]]
    x = torch.randn(3, (L + 1) ** 2, 2, dtype=torch.float64)
    for order, l_max in ((3, L), (4, 2)):
        contraction = SymmetricContraction(l_max, 2, order, 2, 2).double()
        part = x[:, : (l_max + 1) ** 2]
        with torch.no_grad():
            expected = transformed(contraction(part, elements), d)
            found = contraction(transformed(part, d), elements)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))
    products = EdgeProducts(2, L, 2)
    harmonics, weights = torch.randn(3, (L + 1) ** 2, dtype=torch.float64), torch.randn(3, len(products.paths), 2).double()
    before = products(x[:, :9], harmonics, weights)
    turned = transformed(harmonics[..., None], d)[..., 0]
    after = products(transformed(x[:, :9], d), turned, weights)
    for path, a, b in zip(products.paths, before, after, strict=True):
        torch.testing.assert_close(b, torch.from_numpy(d[path[2]]) @ a, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("agnesi", [False, True])
def test_features_do_not_see_rotations_and_inversions(seed: int, agnesi: bool) -> None:
    torch.manual_seed(1)
    config = MACEConfig(8, 2, 3, (3, 2, 3), "plain", "density-residual", 6, 5, (12, 12), agnesi)
    model = MACE(config, 4.0, NUMBERS).double().requires_grad_(False)
    atoms = crystal()
    expected = model(graph_from_atoms(atoms, 4.0))
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ orthogonal(seed).T, scale_atoms=False)
    turned.positions = atoms.positions @ orthogonal(seed).T
    found = model(graph_from_atoms(turned, 4.0))
    assert float((found - expected).abs().max()) <= 1e-10 * float(expected.abs().max())
    assert float(expected.std(0).max()) > 1e-3 * float(expected.abs().max()), "all atoms look alike; nothing was tested"


def test_energy_and_forces_are_captured_as_one_graph() -> None:
    """At sizes that capture never saw."""
    torch.manual_seed(2)
    options = {"channels": 4, "l_max": 1, "correlation": [3, 2], "first": "density", "n_bessel": 4, "radial_hidden": [8]}
    config = ModelConfig(("C", "Si"), 4.0, BackboneConfig("mace", options), None, None, (6,), head_skip=True)
    model = Model(config).eval().requires_grad_(False)
    model.set_network_dtype(torch.float64)
    captured = capture(model, model.facts())
    graph = graph_from_atoms(crystal() * (2, 1, 1), 4.0)
    energies, edge_forces = captured.module(*flat_inputs(graph))
    expected = model.run(graph)
    torch.testing.assert_close(energies, expected[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(edge_forces, expected[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("agnesi", [False, True])
def test_blocks_change_no_number(agnesi: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some tens of blocks of edges; and layers computed twice."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 2**12)
    torch.manual_seed(4)
    options = {"channels": 4, "l_max": 2, "correlation": [2, 2], "later": "density", "radial_hidden": [8], "agnesi": agnesi}
    config = ModelConfig(("C", "Si"), 4.0, BackboneConfig("mace", options), None, None, (6,), head_skip=True)
    model = Model(config).eval().requires_grad_(False)
    model.set_network_dtype(torch.float64)
    graph = graph_from_atoms(crystal(), 4.0)
    expected = model.run(graph)
    for memory in (blocks.using(0), blocks.using(10**12), blocks.keeping_nothing()):
        with memory:
            found = model.run(graph)
        for new, old in zip(found, expected, strict=True):
            torch.testing.assert_close(new, old, rtol=1e-11, atol=1e-13)


def test_a_model_may_go_through_float32_and_back() -> None:
    """Tables of couplings are no weights: they keep their digits."""
    torch.manual_seed(3)
    model = MACE(MACEConfig(4, 1, 2, (3, 3), n_bessel=4, radial_hidden=(8,)), 4.0, NUMBERS).float().requires_grad_(False)
    graph = graph_from_atoms(crystal(), 4.0)
    expected = model.double()(graph)
    torch.testing.assert_close(model.float().double()(graph), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"radial_hidden": (8, 0)}, "radial_hidden must be at least 1"),
        ({"correlation": ()}, "correlation must be numbers from 1 to 4"),
        ({"correlation": (3, 5)}, "correlation must be numbers from 1 to 4"),
        ({"l_hidden": 3, "l_max": 2}, "0 ≤ l_hidden ≤ l_max ≤ 4 is needed"),
        ({"l_max": 4, "correlation": (4,)}, "l_max ≤ 3 is needed"),
    ],
)
def test_senseless_sizes_are_refused(sizes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MACE(MACEConfig(**sizes), 4.0, NUMBERS)  # type: ignore[arg-type]
