"""Memory of a run stays what it was; benchmarks/lammps_memory.py does the same for 30,000 steps with a real model."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.lammps import cases
from tests.lammps.harness import Host, opened
from triforces_deploy import artifact, derivatives
from triforces_deploy.graph import Graph
from triforces_deploy.nn.scatter import scatter_sum
from triforces_deploy.potential import Facts, Potential


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def springs(graph: Graph) -> torch.Tensor:
    """A cheap repulsion between neighbours."""
    near = (4.0 - graph.edge_vector.norm(dim=1)).clamp(min=0) ** 3
    return scatter_sum(0.01 * near, graph.edge_index[1], graph.numbers.shape[0])


@pytest.fixture
def gas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    facts = Facts(
        elements=("Si", "Ge"), cutoff=4.0, n_exchanges=0, receptive_field=4.0, bidirectional=False, composition="none"
    )
    monkeypatch.setattr(artifact, "load", lambda *_: Potential(facts, lambda g: derivatives.evaluate(springs, g), "eager"))
    with opened(tmp_path) as host:
        host.load(cases.triclinic())
        host("pair_style triforces springs\npair_coeff * * Si Ge\nneighbor 0.3 bin\nthermo 100")
        host("velocity all create 3000 1 loop geom\nfix 1 all npt temp 3000 3000 0.05 iso 0 0 0.5")
        yield host


def test_memory_is_constant(gas: Host) -> None:
    gas("run 1000")
    start, positions = resident(), gas.atoms().positions
    for _ in range(3):
        gas("run 1000")
    assert not np.allclose(gas.atoms().positions, positions, atol=0.5), "nothing moved"
    # One forgotten 8-byte array of the pairs at each step would be 3000 × 3 kB.
    assert resident() - start < 2**20
