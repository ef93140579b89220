"""Orb-v3 against the public package, from positions to node features, through stored numbers (fixtures/orb_v3)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms

from triforces_deploy.backbones.orb_v3 import OrbV3, OrbV3Config
from triforces_deploy.errors import UserError
from triforces_deploy.neighbours import graph_from_atoms

FIXTURES = Path(__file__).parent / "fixtures" / "orb_v3"
STRUCTURES = ["molecule", "crystal", "tiny", "triclinic", "isolated"]


def load(name: str) -> tuple[OrbV3, dict[str, np.ndarray]]:
    with np.load(FIXTURES / f"{name}.npz") as file:
        golden = dict(file)
    latent, n_layers, mlp_hidden, mlp_depth, n_bessel, l_max = map(int, golden["sizes"])
    model = OrbV3(OrbV3Config(latent, n_layers, mlp_hidden, mlp_depth, n_bessel, l_max), cutoff=6.0).eval()
    model.load_state_dict(
        {k.removeprefix("weight/"): torch.from_numpy(v) for k, v in golden.items() if k.startswith("weight/")}
    )
    return model, golden


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", ["shallow", "standard"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_features_equal_the_public_package(name: str, structure: str, dtype: torch.dtype, tolerance: float) -> None:
    model, golden = load(name)
    atoms = Atoms(
        golden[f"numbers/{structure}"],
        positions=golden[f"positions/{structure}"],
        cell=golden[f"cell/{structure}"],
        pbc=golden[f"pbc/{structure}"],
    )
    expected = golden[f"{dtype}/{structure}".removeprefix("torch.")]
    with torch.no_grad():
        features = model.to(dtype)(graph_from_atoms(atoms, 6.0)).numpy()
    assert features.dtype == expected.dtype
    assert np.abs(features - expected).max() <= tolerance * np.abs(expected).max()


def test_default_sizes_are_the_released_ones() -> None:
    """As many parameters as the public orb-v3-conservative has in its trunk, that is without decoder and heads."""
    with torch.device("meta"):
        assert sum(p.numel() for p in OrbV3(OrbV3Config(), cutoff=6.0).parameters()) == 24_049_930


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"latent": 0}, "latent must be at least 1, got 0"),
        ({"l_max": 99}, "l_max can be at most"),
        ({"l_max": -1}, "l_max"),
        ({"charge": 1}, "knows no charge"),
        ({"system": "waves", "latent": 6}, "latent must be a multiple of 4, got 6"),
        ({"system": "waves", "spin": -1}, "spin from 0"),
    ],
)
def test_senseless_sizes_are_refused(sizes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        OrbV3(OrbV3Config(**sizes), cutoff=6.0)  # type: ignore[arg-type]
