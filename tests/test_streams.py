"""The two streams against closed formulas, expanded multisets and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from scipy.spatial.transform import Rotation
from scipy.special import eval_legendre

from triforces_deploy.config import CompositionConfig, StructureConfig
from triforces_deploy.errors import UserError
from triforces_deploy.graph import Graph
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.nn.radial import bessel, polynomial_envelope
from triforces_deploy.streams.composition import CompositionStream, count_weighted_attention
from triforces_deploy.streams.structure import ENVELOPE_POWER, StructureStream

NUMBERS = (6, 14, 32)


@pytest.fixture
def composition() -> CompositionStream:
    torch.manual_seed(0)
    return CompositionStream(CompositionConfig(width=32, heads=4, layers=3, hidden=48), NUMBERS).double().eval()


@pytest.fixture
def structure() -> StructureStream:
    torch.manual_seed(0)
    return StructureStream(StructureConfig(width=24, hidden=32), 6.0).double().eval()


def rattled(symbols: str = "Si8") -> Atoms:
    atoms = bulk("Si", "diamond", 5.43, cubic=True)
    atoms.symbols = symbols
    atoms.rattle(0.1, seed=1)
    return atoms


def test_paper_sizes() -> None:
    """TriForces' d = 256 has 3.19 M and, with the upper triangle of the spectrum, 1.81 M parameters."""
    elements = CompositionStream(CompositionConfig(), range(1, 90))
    assert sum(p.numel() for p in elements.parameters()) == 4 * (12 * 256**2 + 13 * 256) + 119 * 256 + 512
    spectrum, d, f = 180, 256, 1024
    mlp = (spectrum * f + f + f * d + d) + 2 * (d * f + f + f * d + d)
    message = 2 * (d * d + d + 8 * d + d * d + d)
    expected = 24 * 8 + 2 * spectrum + mlp + spectrum * d + 24 * 8 + message
    assert sum(p.numel() for p in StructureStream(StructureConfig(), 6.0).parameters()) == expected


def test_counts_stand_for_repeated_tokens() -> None:
    """Proposition A.1: a count is the same as that many equal tokens."""
    torch.manual_seed(1)
    counts = torch.tensor([1, 2, 5])
    q, k, v = (torch.randn(1, 2, 3, 8, dtype=torch.float64) for _ in range(3))
    weighted = count_weighted_attention(q, k, v, counts.double().log()[None, None, None])
    many_k, many_v = (x.repeat_interleave(counts, dim=2) for x in (k, v))
    plain = torch.nn.functional.scaled_dot_product_attention(q, many_k, many_v)
    torch.testing.assert_close(weighted, plain, rtol=1e-13, atol=1e-13)


def test_composition_is_that_of_fractions(composition: CompositionStream) -> None:
    small = graph_from_atoms(rattled("Si5Ge2C"), 3.0)
    large = graph_from_atoms(rattled("Si5Ge2C").repeat(3), 3.0)
    torch.testing.assert_close(composition(large)[:8], composition(small), rtol=0, atol=1e-13)
    other = graph_from_atoms(rattled("Si6GeC"), 3.0)
    assert (composition(other)[0] - composition(small)[0]).abs().max() > 1e-3


def test_an_absent_element_has_no_weight(composition: CompositionStream) -> None:
    """The features of Si in a SiGe structure are those of a model that has never heard of carbon."""
    torch.manual_seed(0)
    narrow = CompositionStream(CompositionConfig(width=32, heads=4, layers=3, hidden=48), (14, 32)).double()
    narrow.load_state_dict(composition.state_dict())
    graph = graph_from_atoms(rattled("Si5Ge3"), 3.0)
    torch.testing.assert_close(narrow(graph), composition(graph), rtol=1e-13, atol=1e-13)


def test_an_empty_structure_gives_no_nan(composition: CompositionStream) -> None:
    assert torch.isfinite(composition.table(torch.zeros(1, 119, dtype=torch.float64))).all()


def test_power_spectrum_of_two_neighbours(structure: StructureStream) -> None:
    """Addition theorem: p_l = (2l+1)/4π (φ(a)φ(a) + φ(b)φ(b) + (φ(a)φ(b) + φ(b)φ(a)) P_l(cos θ))."""
    vectors = torch.tensor([[2.1, 0.3, -0.4], [-0.5, 1.9, 1.2]], dtype=torch.float64)
    graph = Graph(
        numbers=torch.tensor([14, 14, 14]),
        edge_index=torch.tensor([[1, 2], [0, 0]]),
        edge_vector=vectors,
        batch=torch.zeros(3, dtype=torch.int64),
        owned=torch.ones(3, dtype=torch.bool),
        composition=torch.zeros(1, 119, dtype=torch.float64),
        cell=torch.zeros(1, 3, 3, dtype=torch.float64),
    )
    seen: list[torch.Tensor] = []
    structure.norm.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    structure(graph)
    r = vectors.norm(dim=1)
    envelopes = [polynomial_envelope(r, s * 6.0, ENVELOPE_POWER) for s in (0.5, 0.75, 1.0)]
    phi = (torch.cat([e[:, None] * bessel(r, 6.0, 8) for e in envelopes], 1) @ structure.mixing).detach().numpy()
    cosine = float(vectors[0] @ vectors[1] / r.prod())
    own = phi[0][:, None] * phi[0] + phi[1][:, None] * phi[1]
    cross = phi[0][:, None] * phi[1] + phi[1][:, None] * phi[0]
    expected = [((2 * n + 1) / (4 * math.pi) * (own + cross * eval_legendre(n, cosine)))[np.triu_indices(8)] for n in range(5)]
    np.testing.assert_allclose(seen[0][0].detach().numpy(), np.concatenate(expected), rtol=1e-11, atol=1e-15)
    assert seen[0][1:].abs().max() == 0


def test_structure_is_blind_to_rotation_reflection_and_elements(structure: StructureStream) -> None:
    graph = graph_from_atoms(rattled("Si5Ge2C"), 6.0)
    turn = -torch.from_numpy(Rotation.from_euler("xyz", [0.3, 1.1, -0.7]).as_matrix())
    turned = graph._replace(edge_vector=graph.edge_vector @ turn.T, numbers=torch.full_like(graph.numbers, 6))
    torch.testing.assert_close(structure(turned), structure(graph), rtol=0, atol=1e-12)


def test_structure_is_smooth_where_a_neighbour_leaves(structure: StructureStream) -> None:
    """Third differences of the features stay of order h³ across each envelope and the cutoff."""

    def features(distance: float) -> torch.Tensor:
        atoms = Atoms("Si3", [(0, 0, 0), (2.3, 0, 0), (0, distance, 0)])
        return structure(graph_from_atoms(atoms, 6.0))[0].detach()

    for edge in (3.0, 4.5, 6.0):
        jumps = []
        for h in (2e-3, 1e-3):
            f = [features(edge + k * h) for k in (-1.5, -0.5, 0.5, 1.5)]
            jumps.append(float((f[3] - 3 * f[2] + 3 * f[1] - f[0]).abs().max()))
        assert jumps[1] < jumps[0] / 6  # a kink in the second derivative would give 4, in the first 2


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="not a multiple of heads"):
        CompositionStream(CompositionConfig(width=30, heads=4), NUMBERS)
    with pytest.raises(UserError, match="scales"):
        StructureStream(StructureConfig(scales=(0.5, 0.7)), 6.0)
