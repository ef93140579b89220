"""How much memory there is, and how much an evaluation takes, against what the kernel says."""

from __future__ import annotations

import dataclasses
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from ase.build import bulk

from tests.tiny import TINY, tiny_model
from triforces_deploy import exchange, memory
from triforces_deploy.eager import eager, need_in_blocks, within_memory
from triforces_deploy.errors import UserError
from triforces_deploy.memory import Memory, Need
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.nn import blocks
from triforces_deploy.payloads.base import PayloadInfo

GIB = 2**30


@pytest.mark.parametrize(("text", "expected"), [("2GiB", 2**31), ("500 MB", 5 * 10**8), ("1.5k", 1500), ("77", 77)])
def test_the_limit_as_users_write_it(text: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(memory.VARIABLE, text)
    assert memory.limit() == memory.limit(processes=4) == expected


def test_a_limit_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(memory.VARIABLE, "a lot")
    with pytest.raises(UserError, match="TFDEPLOY_MEMORY=a lot: expected a size such as 4GiB"):
        memory.limit()


def test_without_the_variable_processes_share_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(memory.VARIABLE, raising=False)
    assert 2**20 < memory.limit() < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setattr(memory, "available", lambda: 8 * GIB)
    assert memory.limit(processes=4) == GIB


def machine(folder: Path, groups: dict[str, dict[str, str]], own: str) -> int:
    """What is free on a machine with 10 GiB whose control groups are files like these."""
    (folder / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:   {10 * 2**20} kB\n")
    (folder / "own").write_text(own)
    for group, files in groups.items():
        (folder / "groups" / group).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / "groups" / group / name).write_text(text)
    return memory.available(folder / "meminfo", folder / "own", folder / "groups")


def test_what_a_container_or_a_batch_job_may_take(tmp_path: Path) -> None:
    """The tightest group counts, wherever above the process it is; what it keeps of files can be had back."""
    job = {"memory.max": f"{4 * GIB}\n", "memory.current": f"{3 * GIB}\n", "memory.stat": f"anon 5\ninactive_file {GIB}\n"}
    step = {"memory.max": "max\n", "memory.current": f"{GIB}\n"}
    assert machine(tmp_path, {}, "0::/\n") == 10 * GIB
    assert machine(tmp_path, {"job": job, "job/step": step}, "0::/job/step\n") == 2 * GIB


def test_a_container_that_sees_only_its_own_group(tmp_path: Path) -> None:
    files = {"memory.max": f"{3 * GIB}\n", "memory.current": f"{GIB}\n"}
    assert machine(tmp_path, {".": files}, "0::/a/path/of/the/host\n") == 2 * GIB


def test_groups_of_the_first_version(tmp_path: Path) -> None:
    files = {
        "memory.limit_in_bytes": f"{5 * GIB}\n",
        "memory.usage_in_bytes": f"{4 * GIB}\n",
        "memory.stat": f"inactive_file 7\ntotal_inactive_file {2 * GIB}\n",
    }
    endless = {"memory.limit_in_bytes": "9223372036854771712\n", "memory.usage_in_bytes": f"{4 * GIB}\n"}
    groups = {"memory/job": files, "memory": endless}
    assert machine(tmp_path, groups, "5:cpu,cpuacct:/other\n4:memory:/job\n0::/\n") == 3 * GIB


def test_a_system_that_tells_nothing(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert memory.available(missing, missing, missing) == memory.UNKNOWN


def test_the_choice_follows_the_system_and_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked at every evaluation, because systems grow; one rank that has no room decides for all."""
    monkeypatch.setenv(memory.VARIABLE, "1000")
    it = Memory(whole=Need(per_edge=10.0, per_atom=1.0))
    assert [it.fits(10, edges) for edges in (50, 100, 50)] == [True, False, True]
    asked = []
    it.share(2, lambda fits: bool(asked.append(fits)))
    assert not it.fits(10, 50)
    assert asked == [True]


PEAK = """
import re, sys
from pathlib import Path
from ase.build import bulk
from tests.tiny import TINY, tiny_model
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.nn import blocks

def resident(field):
    return int(re.search(field + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

graph = graph_from_atoms(bulk("Si", "diamond", 5.43, cubic=True).repeat((8, 8, int(sys.argv[1]))), TINY.cutoff)
model = tiny_model()
Path("/proc/self/clear_refs").write_text("5")  # forget the peak of what came before
before = resident("VmRSS")
with blocks.using(0):
    model.run(graph)
print(resident("VmHWM") - before, graph.numbers.shape[0], graph.edge_vector.shape[0])
"""


def test_the_predicted_need_is_what_the_kernel_counts() -> None:
    """What a larger system takes more than a smaller one, so that fixed costs do not count."""

    def peak(cells: int) -> list[int]:
        done = subprocess.run([sys.executable, "-c", PEAK, str(cells)], capture_output=True, text=True, check=True)
        return [int(word) for word in done.stdout.split()]

    few, many = peak(4), peak(20)
    kilobytes, atoms, edges = (b - a for a, b in zip(few, many, strict=True))
    assert need_in_blocks(tiny_model()).bytes(atoms, edges) == pytest.approx(1024 * kilobytes, rel=0.25)


def test_blocks_keep_what_they_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they take by themselves counts, too; where that is all, they keep nothing."""
    monkeypatch.setenv(memory.VARIABLE, "1000000")
    graph = graph_from_atoms(bulk("Si", cubic=True), TINY.cutoff)
    atoms, edges = graph.numbers.shape[0], graph.edge_vector.shape[0]
    model, kept = tiny_model(), []

    def run(*_arguments: object) -> tuple[()]:
        budget = blocks.active()
        assert budget is not None
        kept.append(budget.bytes)
        return ()

    monkeypatch.setattr(model, "run", run)
    monkeypatch.setattr("triforces_deploy.eager.need_in_blocks", lambda *_: Need(3e6, 0.0))
    for need in (Need(2.0, 10.0), Need(1e6, 0.0)):
        eager(model, Memory(blocked=lambda need=need: need))(graph)  # type: ignore[misc]
    assert kept == [1_000_000 - 2 * edges - 10 * atoms, 0]


def test_other_ranks_do_not_notice_that_the_need_is_found_out() -> None:
    model, recorder = tiny_model(dataclasses.replace(TINY, cutoff=3.9)), exchange.Recorder()
    with exchange.using(recorder):
        need_in_blocks(model)
        assert recorder.widths == []
        model.run(graph_from_atoms(bulk("Si"), 3.9))
        assert len(recorder.widths) == model.facts().n_exchanges


FREED = """
import ctypes, re, sys
from pathlib import Path
from triforces_deploy import allocator

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def left(size):
    def resident():
        return int(re.search(r"VmRSS:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
    before, blocks = resident(), [libc.malloc(size << 20) for _ in range(4)]
    for block in blocks:
        ctypes.memset(block, 1, size << 20)
    for block in blocks:
        libc.free(block)
    return resident() - before >= 1000 * size

allocator.keep_freed_memory()
kept = left(40)
allocator.give_back_large_blocks()
print(kept, left(120))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
def test_freed_memory_is_kept_until_it_is_short() -> None:
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_an_evaluation_that_takes_much_of_the_memory_gives_back_what_it_frees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks leave the heap in more pieces than the compiled form; what takes little keeps it, for speed."""
    called: list[str] = []
    monkeypatch.setattr("triforces_deploy.eager.give_back_large_blocks", lambda: called.append("given back"))
    monkeypatch.setenv(memory.VARIABLE, "1000000")
    graph = graph_from_atoms(bulk("Si", cubic=True), TINY.cutoff)
    bytes_per_edge = 1e6 / graph.edge_vector.shape[0]
    info = PayloadInfo("torchscript", "float64", "any", "", "")
    for share, whole, in_blocks in ((0.01, 0, 0), (0.2, 0, 1), (0.6, 1, 1)):
        called.clear()
        it = Memory(Need(share * bytes_per_edge, 0.0))
        assert within_memory(lambda _graph: (), info, it, tiny_model)(graph) == ()
        assert len(called) == whole
        called.clear()
        eager(tiny_model(), Memory(blocked=lambda share=share: Need(share * bytes_per_edge, 0.0)))(graph)  # type: ignore[misc]
        assert len(called) == in_blocks
