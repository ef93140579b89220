"""LAMMPS behind its ML-IAP coupling: finding the instance, and rows by atom id between ranks."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.lammps import cases
from tests.lammps.harness import BIN, Host, run
from triforces_deploy.errors import UserError
from triforces_deploy.lammps_plugin.behind import Lammps, instance_behind, instance_in
from triforces_deploy.lammps_plugin.mliap_rows import by_ids

WORD = ctypes.sizeof(ctypes.c_void_p)


def objects(host: Host) -> list[int]:
    """Addresses of some objects of an instance: error, input, atom, update, neighbor, domain, force, modify."""
    members = (ctypes.c_size_t * 14).from_address(host.lmp.lmp.value)
    return [members[k] for k in (1, 3, 4, 5, 6, 8, 9, 10)]


def test_the_instance_is_known_by_any_of_its_objects(host: Host) -> None:
    for address in objects(host):
        assert instance_in(address) == host.lmp.lmp.value


def test_other_memory_is_not_believed(host: Host) -> None:
    copy = (ctypes.c_size_t * 16).from_buffer_copy((ctypes.c_size_t * 16).from_address(objects(host)[0]))
    assert instance_in(ctypes.addressof(copy)) == host.lmp.lmp.value
    for k in range(2, 16):
        wrong = (ctypes.c_size_t * 16)(*copy)
        wrong[k] += WORD
        assert instance_in(ctypes.addressof(wrong)) is None
    assert instance_in(ctypes.addressof((ctypes.c_size_t * 16)())) is None


def test_only_objects_of_lammps_are_looked_into() -> None:
    class MLIAPUnifiedInterface:
        """The name alone does not do."""

    imposter = MLIAPUnifiedInterface()
    MLIAPUnifiedInterface.__module__, MLIAPUnifiedInterface.__qualname__ = "mliap_unified_couple", "MLIAPUnifiedInterface"
    for thing in (None, 3, object(), imposter):
        assert instance_behind(thing) is None
        assert Lammps.behind(thing) is None


def test_what_it_tells(host: Host) -> None:
    host.load(cases.triclinic())
    host("pair_style zero 4.0\npair_coeff * *\ncomm_modify cutoff 7.5\nrun 0")
    found = Lammps(ctypes.CDLL(None), host.lmp.lmp.value)
    n = host.lmp.extract_setting("nall")
    assert n > 16
    assert found.ids(n) is not None
    np.testing.assert_array_equal(found.ids(n), host.lmp.numpy.extract_atom("id", nelem=n))
    np.testing.assert_array_equal(found.types(n), host.lmp.numpy.extract_atom("type", nelem=n))
    assert found.units() == "metal"
    assert found.masses() == pytest.approx([28.085, 72.63], rel=1e-3)
    assert not found.bonds_drop_pairs()
    assert found.ghost_cutoff() == 7.5
    assert found.communicator() is None
    host("clear\nunits metal\natom_style bond\nregion r block 0 1 0 1 0 1\ncreate_box 1 r bond/types 1")
    assert found.bonds_drop_pairs()
    host("special_bonds lj/coul 1 1 1")
    assert not found.bonds_drop_pairs()


def test_ghosts_stand_where_their_owners_do() -> None:
    ids = torch.tensor([7, 3, 9, 5, 3, 7, 3, 12, 12, 4])
    elements = torch.tensor([0, 1, -1, 0, 1, 0, 1, 1, 1, -1])
    rows = by_ids(ids, elements, torch.tensor([3, 0, 1]), 4)
    assert rows.row.tolist() == [1, 2, -1, 0, 2, 1, 2, 3, 3, -1]
    assert rows.atom[:3].tolist() == [3, 0, 1]
    assert ids[rows.atom].tolist() == [5, 7, 3, 12]
    assert rows.owned.tolist() == [True, True, True, False]
    for wrong in ([7, 7, 3], [0, 1, 2]):
        with pytest.raises(UserError, match="atom ids are not unique"):
            by_ids(torch.tensor(wrong), torch.zeros(3, dtype=torch.int64), torch.arange(3), 3)


RANKS = r"""
import ctypes, sys, lammps, torch
from triforces_deploy.lammps_plugin.behind import Lammps
from triforces_deploy.lammps_plugin.exchange_test import self_test
from triforces_deploy.lammps_plugin.mliap_rows import IdExchange
host = lammps.lammps(cmdargs=["-log", "none", "-screen", "none"])
ranks = Lammps(ctypes.CDLL(None), host.lmp.value).communicator()
own = [torch.tensor([4, 9, 2]), torch.tensor([], dtype=torch.int64), torch.tensor([1, 30])][ranks.rank]
strangers = [torch.tensor([30]), torch.tensor([2, 30, 9]), torch.tensor([2, 4])][ranks.rank]
exchange = IdExchange(ranks, own, strangers)
for dtype in (torch.float64, torch.float32):
    everyone = torch.cat([own, strangers])
    truth = everyone[:, None] * torch.tensor([1.0, 0.5, 0.25, 3.0, 7.0], dtype=dtype)
    rows = truth.clone()
    rows[len(own):] = torch.nan
    assert torch.equal(exchange.forward(rows), truth)
    asked = {2: 2, 4: 1, 9: 1, 30: 2, 1: 0}
    back = exchange.adjoint(truth)
    times = torch.tensor([1.0 + asked[i] for i in own.tolist()], dtype=dtype)
    assert torch.equal(back[:len(own)], truth[:len(own)] * times[:, None])
    assert not back[len(own):].any()
def total(numbers):
    return torch.stack(ranks.everybodys(torch.tensor(numbers, dtype=torch.float64)[None])).sum(0)[0].tolist()
assert self_test(exchange, len(own), len(own) + len(strangers), wide=True, ids=torch.cat([own, strangers]), total=total) == ""
try:
    IdExchange(ranks, own, torch.tensor([77]))
except RuntimeError as error:
    assert "no rank owns the atom with id 77" in str(error)
sys.stdout.write(f"rank {ranks.rank} of {ranks.size} is right\n")
sys.stdout.flush()
host.close()
host.finalize()
"""


def test_rows_travel_by_id(tmp_path: Path) -> None:
    (tmp_path / "ranks.py").write_text(RANKS)
    ended = run([str(BIN / "python"), str(tmp_path / "ranks.py")], tmp_path, 3, timeout=200)
    assert ended.code == 0, ended.text
    assert sorted(line for line in ended.text.splitlines() if line.startswith("rank")) == [
        f"rank {k} of 3 is right" for k in range(3)
    ]
