"""The test of the exchange passes where the exchange is right and names what is wrong where it is not."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.lammps import cases
from tests.ranks import Share, _LockStep, split
from triforces_deploy.errors import UserError
from triforces_deploy.exchange import Handler, exchange
from triforces_deploy.graph import Graph
from triforces_deploy.lammps_plugin.exchange_test import self_test
from triforces_deploy.lammps_plugin.halo import Halo
from triforces_deploy.lammps_plugin.session import Session
from triforces_deploy.potential import Facts, Potential

Change = Callable[[Tensor, Tensor, int], Tensor]
"""(what went in, what came out, owned rows) → what comes out of a defective exchange."""


class Defective:
    """An exchange with something wrong on the way to ghosts, or on the way back."""

    def __init__(self, right: Handler, n_owned: int, there: Change | None, back: Change | None) -> None:
        self._right, self._n_owned, self._there, self._back = right, n_owned, there, back

    def forward(self, h: Tensor) -> Tensor:
        out = self._right.forward(h)
        return out if self._there is None else self._there(h, out, self._n_owned)

    def adjoint(self, g: Tensor) -> Tensor:
        out = self._right.adjoint(g)
        return out if self._back is None else self._back(g, out, self._n_owned)


def verdicts(there: Change | None = None, back: Change | None = None, known: bool = True, wide: bool = True) -> set[str]:
    """Of three ranks, one of them empty, each a thread."""
    atoms = cases.triclinic()
    shares = split(atoms, 4.0, (np.argsort(np.argsort(atoms.positions[:, 0])) * 2 // len(atoms)).astype(np.int64), 3, True)
    handler = _LockStep(shares, communicate=True)
    sums: list[list[float]] = [[]] * len(shares)
    found: list[str] = []
    failures: list[Exception] = []

    def total(values: Sequence[float]) -> list[float]:
        sums[handler.here.rank] = list(values)
        handler.barrier.wait()
        result = np.sum(sums, axis=0).tolist()
        handler.barrier.wait()
        return list(result)

    def work(rank: int) -> None:
        handler.here.rank = rank
        share = shares[rank]
        n_owned, n_rows = len(share.atoms), share.graph.numbers.shape[0]
        try:
            wrong = Defective(handler, n_owned, there, back)
            found.append(self_test(wrong, n_owned, n_rows, wide, _ids(share, shares) if known else None, total))
        except Exception as failure:
            failures.append(failure)
            handler.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(shares))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    return set(found)


def _ids(share: Share, shares: list[Share]) -> Tensor:
    ghosts = [int(shares[rank].atoms[row]) for rank, row in zip(share.ghost_rank, share.ghost_row, strict=True)]
    return torch.cat([share.atoms, torch.tensor(ghosts, dtype=torch.int64)])


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("wide", [True, False])
def test_a_right_exchange_passes_on_every_rank(known: bool, wide: bool) -> None:
    assert verdicts(known=known, wide=wide) == {""}


def of_others(_given: Tensor, out: Tensor, n: int) -> Tensor:
    """Whole rows, but of the wrong owners."""
    return torch.cat([out[:n], out[n:].roll(1, 0)])


def first_columns(given: Tensor, out: Tensor, n: int) -> Tensor:
    """Only what fits into one piece."""
    return torch.cat([out[:, :64], given[:, 64:]], dim=1)


def skewed(_given: Tensor, out: Tensor, n: int) -> Tensor:
    return torch.cat([out[:n], out[n:].flatten().roll(1).view(-1, out.shape[1])])


def forgets(given: Tensor, _out: Tensor, n: int) -> Tensor:
    """Nothing is added, ghosts are cleared."""
    return torch.cat([given[:n], torch.zeros_like(given[n:])])


def keeps(given: Tensor, out: Tensor, n: int) -> Tensor:
    return torch.cat([out[:n], given[n:]])


def drops_one(given: Tensor, out: Tensor, n: int) -> Tensor:
    """One of the ghosts' rows is lost on one of the owners, in every column alike."""
    changed = out.clone()
    where = (out[:n, 0] > 2).nonzero()[:1, 0]
    changed[where] -= out[where] / out[where, :1]
    return changed


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("there", "back", "message"),
    [
        (of_others, None, "ghost atoms do not get the rows of their owners"),
        (first_columns, None, "ghost atoms do not get the rows of their owners"),
        (skewed, None, "ghost atoms do not get the rows of their owners"),
        (lambda given, _out, _n: given.clone(), None, "ghost atoms do not get the rows of their owners"),
        (lambda _given, out, _n: 2 * out, None, "ghost atoms do not get the rows of their owners"),
        (None, forgets, "not the transpose"),
        (None, keeps, "not the transpose"),
        (None, first_columns, "not the transpose"),
        (None, drops_one, "not the transpose"),
        (None, lambda _given, out, _n: 2 * out, "not the transpose"),
    ],
)
def test_a_wrong_one_is_found(there: Change | None, back: Change | None, message: str, known: bool) -> None:
    found = verdicts(there, back, known)
    if there is of_others and not known:
        return  # whose row it is, only ids can tell
    assert any(message in verdict for verdict in found), found


FACTS = Facts(elements=("Si",), cutoff=4.0, n_exchanges=2, receptive_field=8.0, bidirectional=False, composition="none")


class Nowhere:
    """What C++ hands over for a rank without atoms."""

    rows = owned = edges = 0
    numbers = edge_index = edge_vector = counts = energies = edge_forces = None


def test_ranks_that_opened_other_forms_are_refused() -> None:
    """One compiled form may exchange in another order than the next."""

    def add_another(_pair: int | None, count: int, address: int) -> int:
        values = (ctypes.c_double * count).from_address(address)
        values[0] += count == 1
        return 0

    session = Session(Potential(FACTS, lambda _graph: (), "aoti"), "a.pt", Halo(lambda *_: 0, add_another, None))
    with pytest.raises(UserError, match=r"ranks do not run the same: here a\.pt is opened as aoti"):
        session.test(Nowhere(), None)


@pytest.mark.parametrize("made", [1, 3])
def test_a_model_that_exchanges_more_or_less_than_it_says(made: int) -> None:
    def run(graph: Graph) -> tuple[Tensor, ...]:
        rows = torch.zeros(graph.numbers.shape[0], 3)
        for _ in range(made):
            rows = exchange(rows)
        return torch.zeros(0, dtype=torch.float64), torch.zeros(0, 3, dtype=torch.float64)

    halo = Halo(lambda *_: 0, lambda *_: 0, None)
    session = Session(Potential(FACTS, run, "eager"), "a.pt", halo)
    session._ranks = 2
    with pytest.raises(RuntimeError, match=rf"a\.pt made {made} exchanges forward and 0 backward, its facts say 2"):
        session.compute(Nowhere())
    assert halo.forwards == [12] * made
