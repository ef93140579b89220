"""Blocks change memory, never numbers: with nothing kept, something kept, everything kept, and with rows in a file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ase import Atoms
from ase.build import bulk
from torch import Tensor

from tests.ranks import check_split
from tests.tiny import TINY, tiny_model
from triforces_deploy import memory
from triforces_deploy.eager import need_of, within_memory
from triforces_deploy.errors import UserError
from triforces_deploy.graph import Graph, collate
from triforces_deploy.memory import Memory
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.nn import blocks, linear, scratch
from triforces_deploy.payloads.base import PayloadInfo, Run


def crystal() -> Atoms:
    atoms = bulk("Si", "diamond", 5.43, cubic=True).repeat((2, 2, 1))
    atoms.symbols[::3] = "Ge"
    atoms.rattle(0.1, seed=0)
    return atoms


def graph(atoms: Atoms) -> Graph:
    return graph_from_atoms(atoms, TINY.cutoff)


GRAPHS = {
    "crystal": graph(crystal()),
    "nothing": graph(Atoms()),
    "one atom": graph(Atoms("Si")),
    "batch": collate([graph(crystal()), graph(Atoms("Ge")), graph(crystal())]),
}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some tens of blocks even for the small structures here, none of them the same size as the last."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 200 * 24 * 8)


@pytest.mark.parametrize("limit", [0, 3_000_000, 10**12])
@pytest.mark.parametrize("name", GRAPHS)
def test_blocks_change_no_number(name: str, limit: int) -> None:
    model = tiny_model()
    expected = model.run(GRAPHS[name], extras=model.extras())
    with blocks.using(limit):
        found = model.run(GRAPHS[name], extras=model.extras())
    for new, old in zip(found, expected, strict=True):
        torch.testing.assert_close(new, old, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", GRAPHS)
def test_keeping_nothing_changes_no_number(name: str) -> None:
    """As compiled forms are captured with --lean: whole layers, computed again for the derivative."""
    model = tiny_model()
    expected = model.run(GRAPHS[name], extras=model.extras())
    with blocks.keeping_nothing():
        found = model.run(GRAPHS[name], extras=model.extras())
    for new, old in zip(found, expected, strict=True):
        torch.testing.assert_close(new, old, rtol=1e-12, atol=1e-13)


def test_the_budget_decides_how_much_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """More room, more kept, none without any; a block is recorded for its derivative once, however that is."""
    calls = []
    record = blocks._recorded

    def counting(*args: object) -> object:
        calls.append(1)
        return record(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(blocks, "_recorded", counting)
    counts, spent = {}, {}
    for limit in (0, 300_000, 10**12):
        with blocks.using(limit):
            budget = blocks.active()
            tiny_model().run(GRAPHS["crystal"])
        assert budget is not None
        counts[limit], spent[limit] = len(calls), budget.spent
        calls.clear()
    # Every block that needs a derivative is recorded once, at the first or at the second go.
    assert len(set(counts.values())) == 1
    assert spent[0] == 0 < spent[300_000] < spent[10**12]


@pytest.mark.parametrize("precision", [torch.float64, torch.float32])
@pytest.mark.parametrize("limit", [0, 100_000, 10**12])
def test_products_that_are_kept_change_no_number(limit: int, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of large matrices alone, which here all are; in float32 by another library than elsewhere."""
    monkeypatch.setattr(linear, "LEAST", 2)
    monkeypatch.setattr(linear, "LEAST_TERMS", 20)
    made = []
    multiply = linear._product
    monkeypatch.setattr(linear, "_product", lambda *a: made.append(a[0].dtype) or multiply(*a))
    model = tiny_model()
    expected = model.run(GRAPHS["batch"], extras=model.extras())
    model.set_network_dtype(precision)
    with blocks.using(limit, everything=False):
        budget = blocks.active()
        found = model.run(GRAPHS["batch"], extras=model.extras())
    digits = {"rtol": 1e-12, "atol": 1e-13} if precision == torch.float64 else {"rtol": 1e-5, "atol": 2e-5}
    for new, old in zip(found, expected, strict=True):
        torch.testing.assert_close(new.to(old.dtype), old, **digits)
    assert set(made) == {precision}
    assert budget is not None
    assert (budget.spent > 0) == (limit > 0)


def test_a_product_that_was_kept_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room every product of many terms is computed once more in the backward pass, with room none is."""
    monkeypatch.setattr(linear, "LEAST", 2)
    monkeypatch.setattr(linear, "LEAST_TERMS", 20)
    multiply, looked_up = linear._product, blocks._Products.of
    computed, asked_again = [], []
    monkeypatch.setattr(linear, "_product", lambda *a: computed.append(1) or multiply(*a))

    def of(products: blocks._Products, compute: Callable[[], Tensor]) -> Tensor:
        asked_again.extend([1] if products.again is not None else [])
        return looked_up(products, compute)

    monkeypatch.setattr(blocks._Products, "of", of)
    counts = []
    for limit in (0, 10**12):
        with blocks.using(limit, everything=False):
            tiny_model().run(GRAPHS["crystal"])
        counts.append(len(computed))
        computed.clear()
    assert counts[0] - counts[1] == len(asked_again) > 0


def test_rows_in_a_file_are_the_same_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(scratch.VARIABLE, str(tmp_path))
    monkeypatch.setattr(scratch, "LEAST_BYTES", 4096)
    made = []
    make = scratch.empty_rows
    monkeypatch.setattr(scratch, "empty_rows", lambda *a: made.append(make(*a)) or made[-1])
    model = tiny_model()
    expected = model.run(GRAPHS["crystal"])
    with blocks.using(0):
        found = model.run(GRAPHS["crystal"])
    assert any(t.untyped_storage().data_ptr() in scratch._maps for t in made)
    for new, old in zip(found, expected, strict=True):
        torch.testing.assert_close(new, old, rtol=1e-12, atol=1e-13)
    made.clear()
    assert list(tmp_path.iterdir()) == []  # the files have no names


def test_released_rows_keep_their_values(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(scratch.VARIABLE, str(tmp_path))
    monkeypatch.setattr(scratch, "LEAST_BYTES", 4096)
    values = torch.arange(30_000, dtype=torch.float64).view(-1, 3)
    stored = scratch.put_away(values)
    assert stored.untyped_storage().data_ptr() != values.untyped_storage().data_ptr()
    for start in range(0, 10_000, 700):
        scratch.release(stored, slice(start, min(start + 700, 10_000)))
    assert torch.equal(stored, values)


def test_a_scratch_folder_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(scratch.VARIABLE, str(tmp_path / "missing"))
    monkeypatch.setattr(scratch, "LEAST_BYTES", 0)
    with pytest.raises(UserError, match=r"TFDEPLOY_SCRATCH=.*missing: cannot reserve"):
        scratch.empty_rows((10, 3), torch.zeros(1))


def test_a_compiled_form_that_would_not_fit_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    info = PayloadInfo("aoti", "float64", "any", "x", "x", details={"bytes_per_edge": 1000.0, "bytes_per_atom": 10.0})
    used = []
    edges = GRAPHS["crystal"].edge_vector.shape[0]

    def runner(limit: int) -> Run:
        monkeypatch.setenv(memory.VARIABLE, str(limit))
        return within_memory(lambda _: used.append("compiled") or (), info, Memory(need_of(info)), tiny_model)

    runner(edges * 1000 + 400)(GRAPHS["crystal"])
    assert used == ["compiled"]
    torch.testing.assert_close(runner(edges * 1000 - 400)(GRAPHS["crystal"])[1], tiny_model().run(GRAPHS["crystal"])[1])
    assert used == ["compiled"]


def test_several_ranks_exchange_between_blocks() -> None:
    """The structure cut over ranks, each evaluated in blocks, equals the whole."""
    model = tiny_model()

    def in_blocks(part: Graph) -> torch.Tensor:
        with blocks.using(0):
            return model(part)

    check_split(in_blocks, crystal(), TINY.cutoff, bidirectional=True)


MEMORY = """
import re, sys
from pathlib import Path
from ase.build import bulk
from tests.tiny import TINY, tiny_model
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.nn import blocks

def resident(field):
    return int(re.search(field + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

graph = graph_from_atoms(bulk("Si", "diamond", 5.43, cubic=True).repeat(7), TINY.cutoff)
model = tiny_model()
blocks.BLOCK_BYTES = 2000 * 24 * 8
Path("/proc/self/clear_refs").write_text("5")  # forget the peak of what came before
before = resident("VmRSS")
if sys.argv[1] == "whole":
    model.run(graph)
else:
    with blocks.using(0):
        model.run(graph)
print(resident("VmHWM") - before)
"""


def test_blocks_need_a_fraction_of_the_memory() -> None:
    def peak(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", MEMORY, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    whole = peak("whole")
    assert whole > 50_000  # kB
    assert peak("blocks") < 0.5 * whole
