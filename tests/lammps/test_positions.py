"""The route by positions, which a GPU takes, here on the CPU: the same numbers as the route by edge vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.lammps import cases, test_single_rank
from tests.lammps.harness import Array, Environment, Host, expected
from tests.lammps.test_against_ase import check
from tests.lammps.test_many_ranks import SYSTEMS, deviations, simulate
from triforces_deploy.lammps_plugin.placement import ROUTE
from triforces_deploy.potential import Potential


@pytest.fixture(params=["positions", "graphs"])
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    monkeypatch.setenv(ROUTE, name)
    return name


@pytest.fixture
def crystal(host: Host, tiny_artifact: Path, route: str) -> Host:
    host.load(cases.orthogonal())
    host(f"pair_style triforces {tiny_artifact}\npair_coeff * * Si Ge")
    return host


def short(folder: Path, artifact: Path, ranks: int, env: Environment | None = None) -> tuple[dict[str, Array], str]:
    """A few steps of each system, so that roundings have no time to grow."""
    with pytest.MonkeyPatch.context() as patch:
        for name in cases.ALL:
            boundary, comm, steps, before = SYSTEMS[name]
            patch.setitem(SYSTEMS, name, (boundary, comm, min(steps, 5), before))
        return simulate(folder, artifact, ranks, tuple(cases.ALL), env)


@pytest.fixture(scope="module")
def by_pairs(tmp_path_factory: pytest.TempPathFactory, tiny_artifact: Path) -> dict[str, Array]:
    return short(tmp_path_factory.mktemp("pairs"), tiny_artifact, 1)[0]


@pytest.mark.parametrize(("ranks", "route"), [(1, "positions"), (1, "graphs"), (2, "graphs")])
def test_ranks_boxes_and_lists(by_pairs: dict[str, Array], tiny_artifact: Path, tmp_path: Path, route: str, ranks: int) -> None:
    """Energies, forces, virials and pressures of every system, an empty rank and several images of an atom among them."""
    found, text = short(tmp_path, tiny_artifact, ranks, {ROUTE: route})
    worst = deviations(found, by_pairs)
    assert max(worst.values()) <= 1e-12, worst
    assert "gets positions at every step" in text


@pytest.mark.parametrize("route", ["graphs"], indirect=True)
def test_relaxation_dynamics_and_restart(crystal: Host, tiny: Potential, tmp_path: Path, tiny_artifact: Path) -> None:
    test_single_rank.test_relaxation_dynamics_and_restart(crystal, tiny, tmp_path, tiny_artifact)


def test_atoms_that_vanish_and_change_their_element(crystal: Host, tiny: Potential) -> None:
    test_single_rank.test_atoms_that_vanish_and_change_their_element(crystal, tiny)


def test_leaves_types_mapped_to_null_alone(host: Host, tiny: Potential, tiny_artifact: Path, route: str) -> None:
    test_single_rank.test_leaves_types_mapped_to_null_alone(host, tiny, tiny_artifact)


def test_per_atom_virial_adds_up(crystal: Host) -> None:
    test_single_rank.test_per_atom_virial_adds_up(crystal)


def test_other_styles_beside_it(host: Host, tiny: Potential, tiny_artifact: Path, route: str) -> None:
    test_single_rank.test_adds_to_other_styles(host, tiny, tiny_artifact, "triforces {} zbl 2.0 3.0")


def test_a_crystal_that_melts_leaves_its_buckets(crystal: Host, tiny: Potential) -> None:
    """Ten times as many atoms after a while, then few again."""
    crystal("velocity all create 8000 1 dist gaussian\nfix 1 all nve\nrun 20\nunfix 1")
    crystal("replicate 2 1 1\nrun 0")
    test_single_rank.check_where_it_is(crystal, tiny)
    crystal("group gone id > 20\ndelete_atoms group gone compress yes")
    test_single_rank.check_where_it_is(crystal, tiny)


def test_what_is_wrong_is_said_as_by_pairs(
    host: Host, tiny_artifact: Path, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    atoms = cases.orthogonal()
    atoms.positions[4] = atoms.positions[9]
    host.load(atoms)
    host(f"pair_style triforces {tiny_artifact}\npair_coeff * * Si Ge")
    with pytest.raises(Exception, match=r"atoms 5 and 10 are 0\.0+ Angstrom apart"):
        host("run 0")
    host.load(cases.orthogonal())
    host(f"pair_style triforces {tiny_artifact}\npair_coeff * * Si Ge")
    evaluate = Potential.evaluate_unchecked

    def broken(self: Potential, graph: object, handler: object) -> object:
        result = evaluate(self, graph, handler)  # type: ignore[arg-type]
        result.edge_forces[7, 1] = float("nan")
        return result

    monkeypatch.setattr(Potential, "evaluate_unchecked", broken)
    with pytest.raises(
        Exception, match=r"the force on atom \d+ \(type \d, nearest neighbour at 2.\d+ Angstrom\) is not finite"
    ):
        host("run 0")


def test_the_box_may_change_at_every_step(crystal: Host, tiny: Potential) -> None:
    crystal(
        "velocity all create 900 4 dist gaussian\nfix 1 all npt temp 900 900 0.05 aniso 5e4 5e4 0.05\nneigh_modify every 20"
    )
    crystal("run 10\nunfix 1\nneigh_modify every 1")
    assert not np.allclose(crystal.atoms().cell.array, cases.orthogonal().cell.array, atol=1e-3)
    test_single_rank.check_where_it_is(crystal, tiny)
    check(crystal.result(), expected(crystal.atoms(), tiny), crystal.atoms().get_volume())
