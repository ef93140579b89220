"""The benchmark of the paper's claims: contenders are of equal size, and its table says what the numbers do."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from scipy.stats import sem

ROOT = Path(__file__).parents[2]
ERRORS = {"matched": [200.0, 100.0, 150.0], "triforces": [100.0, 60.0, 60.0]}


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in ("claims", "claims_table", "claims_data"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import claims

    return claims


def test_the_wide_backbone_has_the_parameters_of_the_narrow_one_with_streams(claims: ModuleType, tmp_path: Path) -> None:
    for data in claims.data_sets(tmp_path).values():
        sizes = {
            contender.name: sum(p.numel() for p in claims.Model(claims.model_config(data, contender)).parameters())
            for contender in (*claims.MAIN, *claims.ABLATIONS)
        }
        assert sizes["matched"] == pytest.approx(sizes["streams"], rel=0.02)
        assert sizes["triforces"] == sizes["streams"]
        assert sizes["baseline"] < sizes["C+I"] < sizes["S+I"] < sizes["streams"]


def test_the_table_compares_contenders_seed_by_seed(
    claims: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import claims_table

    for module in (claims, claims_table):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    for name, errors in ERRORS.items():
        for seed, error in enumerate(errors):
            row = {"set": "tersoff", "contender": name, "size": 50, "seed": seed, "steps": 10, "pretraining_steps": 0}
            claims.record({**row, "parameters": 7, "seconds": 1.0, "energy_mae": error, "forces_mae": 2 * error})
    changes = [100 * (b / a - 1) for a, b in zip(ERRORS["matched"], ERRORS["triforces"], strict=True)]  # −50, −40, −60
    assert sum(changes) / 3 == pytest.approx(-50)
    claims.record({**row, "size": 200, "parameters": 7, "seconds": 1.0, "energy_mae": 9.0, "forces_mae": 8.0})
    text = (tmp_path / "claims.md").read_text()
    assert f"| −50 ± {sem(changes):.0f} % | −50 ± {sem(changes):.0f} % |" in text
    assert f"150.0 ± {sem(ERRORS['matched']):.1f}" in text
    assert "which reaches the −40 % asked for" in text
    assert len((tmp_path / "claims.jsonl").read_text().splitlines()) == 7
    claims.record({**json.loads((tmp_path / "claims.jsonl").read_text().splitlines()[0]), "energy_mae": 1.0})
    assert len((tmp_path / "claims.jsonl").read_text().splitlines()) == 7, (
        "a run that is made again takes the place of its line"
    )
    assert (tmp_path / "claims.png").is_file()
