"""The checks before a run that LAMMPS itself would not let a test reach."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from triforces_deploy.errors import UserError
from triforces_deploy.lammps_plugin.placement import Placement
from triforces_deploy.lammps_plugin.startup import Run, check, describe
from triforces_deploy.potential import CPU, Facts, Potential

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
    ghost_neighbours=False,
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
        ({"units": "real"}, "write 'units metal'"),
        ({"newton": False}, "write 'newton on'"),
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
    text = describe(Potential(facts, lambda _graph: (), "eager"), "a.pt", GOOD, 1, Placement(CPU, "no reason"))
    lines = [line.strip() for line in text.splitlines()]
    assert [line for line in lines if line.startswith("composition")] == [
        "composition: frozen at Si0.7 Ge0.3333 (this system: Si7 Ge1)"
    ]
    assert "graph: every neighbour within 4.0 A, no cap" in lines
    assert "lattice encoding: none" in lines
    assert text.isascii()
