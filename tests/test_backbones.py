"""Every backbone of the table keeps the contract; a new one is tested by being listed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract import CHECKS, Subject
from triforces_deploy.backbones.table import BACKBONES

SMALL: dict[str, dict[str, Any]] = {
    "esen": {
        "channels": 6,
        "hidden": 5,
        "edge_channels": 7,
        "n_layers": 2,
        "l_max": 3,
        "m_max": 2,
        "n_gaussians": 8,
        "charge": -1,
        "spin": 2,
        "datasets": ["a", "b"],
        "dataset": "b",
    },
    "mace": {
        "channels": 4,
        "l_hidden": 1,
        "l_max": 2,
        "correlation": [3, 2, 1],
        "first": "density",
        "later": "density-residual",
        "n_bessel": 5,
        "radial_hidden": [8],
        "agnesi": True,
    },
    "orb_v3": {
        "latent": 12,
        "n_layers": 3,
        "mlp_hidden": 20,
        "mlp_depth": 2,
        "n_bessel": 5,
        "l_max": 2,
        "system": "waves",
        "charge": -1,
        "spin": 2,
    },
}
"""Options that make each backbone small, with several layers."""


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_keeps_the_contract(name: str, check: Any) -> None:
    check(Subject(name, SMALL[name]))
