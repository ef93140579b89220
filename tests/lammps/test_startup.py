"""The checks before a run that LAMMPS itself would not let a test reach."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from triforces_deploy.errors import UserError
from triforces_deploy.lammps_plugin.figures import figures_of
from triforces_deploy.lammps_plugin.halo import Halo
from triforces_deploy.lammps_plugin.session import Session
from triforces_deploy.lammps_plugin.startup import Run, Shares, check, describe
from triforces_deploy.memory import VARIABLE, Memory, Need
from triforces_deploy.potential import Facts, Potential

FACTS = Facts(elements=("Si", "Ge"), cutoff=4.0, n_exchanges=2, receptive_field=12.0, bidirectional=True)
GOOD = Run(
    units="metal",
    masses=(28.0855, 72.6),
    numbers=(14, 32),
    counts={14: 7, 32: 1},
    ghost_cutoff=5.0,
    newton=True,
    ranks=2,
    bonds_drop_pairs=False,
    exclusions=False,
    loses_ghosts=False,
    ghost_neighbours=False,
    shares=Shares(node_ranks=2, owned=5, rows=8, edges=60, ghost_rows=(2, 3), ghosts=(10, 12)),
)


@pytest.mark.parametrize(
    "fine",
    [{}, {"masses": (0.0, 0.0)}, {"masses": (2.0, 2.0)}, {"numbers": (0, 32), "masses": (72.6, 72.6)}],
    ids=["plain", "masses of atoms", "masses of nothing", "type of another style"],
)
def test_accepts(fine: dict[str, Any]) -> None:
    check(FACTS, dataclasses.replace(GOOD, **fine))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"units": "lj"}, "units lj; write 'units metal' or 'units real'"),
        ({"newton": False}, "write 'newton on'"),
        ({"loses_ghosts": True}, "write 'comm_style brick'"),
        ({"ghost_cutoff": 3.9}, "write 'comm_modify cutoff 6'"),
        ({"bonds_drop_pairs": True}, "write 'special_bonds lj/coul 1 1 1'"),
        ({"masses": (72.6, 28.0855)}, "type 1 is Si in pair_coeff but its mass 72.6 is that of Ge"),
    ],
)
def test_refuses_in_one_line_that_says_what_to_write(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        check(FACTS, dataclasses.replace(GOOD, **wrong))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fact", "message"),
    [
        ({"max_neighbours": 20}, "a model with a neighbour cap runs on one rank"),
        ({"separable": False}, "not separable runs on one"),
    ],
)
def test_what_needs_all_atoms_is_refused_on_several_ranks(fact: dict[str, Any], message: str) -> None:
    facts = dataclasses.replace(FACTS, **fact)
    check(facts, dataclasses.replace(GOOD, ranks=1))
    with pytest.raises(UserError, match=message):
        check(facts, GOOD)


def test_the_block_lists_what_export_froze_once() -> None:
    policies = ("composition: frozen to Si0.7 Ge0.3", "graph: every neighbour within 4.0 Å, no cap", "lattice encoding: none")
    facts = dataclasses.replace(FACTS, composition="frozen", reference={"Si": 0.7, "Ge": 1 / 3}, policies=policies)
    block = describe(Potential(facts, lambda _graph: (), "eager"), "a.pt", GOOD, 1)
    lines = [line.strip() for line in block]
    assert [line for line in lines if line.startswith("composition")] == [
        "composition: frozen at Si0.7 Ge0.3333 (this system: Si7 Ge1)"
    ]
    assert "graph: every neighbour within 4.0 A, no cap" in lines
    assert "lattice encoding: none" in lines
    assert "".join(block).isascii()


def figures(memory: Memory, **facts: Any) -> tuple[bool, list[str]]:
    return figures_of(Potential(dataclasses.replace(FACTS, **facts), lambda _graph: (), "eager", memory=memory), GOOD.shares, 2)


@pytest.mark.parametrize(
    ("precision", "widths", "sent"),
    [
        ("float64", (16, 3), "16 + 3 float64 numbers: 3040 to 3648"),
        ("float32", (16, 3), "16 + 3 float32 numbers: 1600 to 1920"),
    ],
)
def test_the_block_tells_what_travels(precision: str, widths: tuple[int, ...], sent: str) -> None:
    """2 ways · ghosts · (8·16 + 8·3) bytes; 3 float32 numbers travel as two float64."""
    _, (ghosts, travel) = figures(Memory(), precision=precision, exchange_widths=widths)
    assert ghosts == "ghosts: 10 to 12 per rank, of 2 to 3 atoms of other ranks"
    assert sent in travel


def test_the_block_tells_whether_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "1 MiB")
    whole, blocks = Need(per_edge=5e4, per_atom=1e3), Need(per_edge=1e4, per_atom=1e3)
    fits, (*_, line) = figures(Memory(Need(1e4, 1e3), lambda: blocks))
    assert fits
    # 60 · 10 kB + 8 · 1 kB = 0.58 MiB for 5 atoms, so 8 of them fill 1 MiB.
    assert line == (
        "memory: 10.00 kB per edge and 1.00 kB per atom, 0.6 MiB on the largest rank, of 1.0 MiB allowed, "
        "up to 8 atoms per rank"
    )
    fits, (*_, first, second) = figures(Memory(whole, lambda: blocks))
    assert not fits
    assert first.startswith("memory: 50.00 kB per edge")
    assert second.startswith("memory, in blocks instead: 10.00 kB per edge")
    fits, (*_, line, warning) = figures(Memory(whole, lambda: whole))
    assert warning.startswith("WARNING: this may not fit even so")
    assert figures(Memory())[1] == ["ghosts: 10 to 12 per rank, of 2 to 3 atoms of other ranks"]


def test_a_second_run_shows_the_block_only_when_something_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "1 MiB")
    potential = Potential(FACTS, lambda _graph: (), "aoti", memory=Memory(Need(1e4, 1e3), lambda: Need(1e3, 1e3)))
    session = Session(potential, "a.pt", Halo(lambda *_: 0, lambda *_: 0, None))

    def shown(edges: int) -> str:
        return session.start(dataclasses.replace(GOOD, shares=dataclasses.replace(GOOD.shares, edges=edges)))

    assert "up to 8 atoms per rank" in shown(60)
    assert shown(61) == ""
    assert "in blocks instead" in shown(200)
    assert shown(210) == ""
    assert "in blocks" not in shown(60) != ""
