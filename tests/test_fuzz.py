"""Some hundred of the files that benchmarks/fuzz.py tries by the ten thousand."""

from __future__ import annotations

import collections
from pathlib import Path

import pytest

from benchmarks.fuzz import FAILURES, MUTATIONS, attempt, fuzz, make_sources


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    return make_sources(tmp_path_factory.mktemp("fuzz"))


def test_changed_files_give_an_error_or_an_equal_result(sources: tuple[Path, ...], tmp_path: Path) -> None:
    """In a process of limited memory that may die; every kind of change takes part, and most of them are noticed."""
    outcomes = fuzz(range(400), sources, tmp_path, workers=1)
    assert [o for o in outcomes if o.kind in FAILURES] == []
    tried = collections.Counter(o.mutation for o in outcomes)
    assert tried == dict.fromkeys((m.__name__ for m in MUTATIONS), 400 // len(MUTATIONS))
    assert sum(o.kind == "error" for o in outcomes) > 250


def test_the_fuzzer_notices_a_wrong_number(sources: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With readers that check no digest, a changed checkpoint is read as if nothing were the matter."""
    monkeypatch.setattr("triforces_deploy.checkpoint._digest", lambda content: content.get("sha256"))
    monkeypatch.setattr("triforces_deploy.contents.hash_weights", lambda _weights: "")
    monkeypatch.setattr("zipfile.ZipExtFile._update_crc", lambda _self, _data: None)
    checkpoints = tuple(path for path in sources if path.suffix == ".ckpt")
    kinds = {attempt(seed, checkpoints, tmp_path).kind for seed in range(0, 400, len(MUTATIONS))}
    assert "wrong" in kinds
