"""Which row of the model's tensors each atom of LAMMPS stands in, and the exchange of rows where LAMMPS offers none.

With atom ids in hand, a ghost of an own atom shares its owner's row, and all ghosts of one atom of another rank share one.
One rank then has no ghost rows and nothing to exchange; several send each row once to whoever needs it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from triforces_deploy.errors import UserError
from triforces_deploy.lammps_plugin.mpi import Communicator
from triforces_deploy.nn.scatter import accumulate


class Rows(NamedTuple):
    """N atoms and ghosts in R rows."""

    row: Tensor
    """(N,) int64; −1 for atoms of another pair style, which no edge may name."""
    atom: Tensor
    """(R,) int64. The atom or ghost that stands for a row."""
    owned: Tensor
    """(R,) bool."""
    centres: Tensor
    """(L,) int64. The row behind each entry of LAMMPS' list of atoms."""


def one_each(n_total: int, listed: Tensor) -> Rows:
    """Every atom and ghost in a row of its own; ``listed`` (L,) are the atoms whose energy counts."""
    everything = torch.arange(n_total, device=listed.device)
    owned = torch.zeros(n_total, dtype=torch.bool, device=listed.device)
    owned[listed] = True
    return Rows(everything, everything, owned, listed)


def by_ids(ids: Tensor, elements: Tensor, listed: Tensor, n_local: int) -> Rows:
    """Listed atoms in the first rows, in their order, then one row for each atom of another rank.

    Args:
        ids: (N,) int64.
        elements: (N,) int64, negative for atoms of another pair style.
        listed: (L,) int64, the atoms whose energy counts.
        n_local: atoms before the ghosts.

    Raises:
        UserError: ids are not unique.
    """
    own = ids[listed]
    ordered, order = own.sort()
    if bool((ordered[1:] == ordered[:-1]).any()) or bool((own < 1).any()):
        raise UserError("atom ids are not unique, so that ghosts cannot be told apart; write 'reset_atoms id'")
    ghosts = torch.nonzero(elements[n_local:] >= 0)[:, 0] + n_local
    place, mine = _found(ordered, ids[ghosts])
    row = torch.full((len(ids),), -1)
    row[listed] = torch.arange(len(listed))
    row[ghosts[mine]] = order[place[mine]]
    foreign = ghosts[~mine]
    strangers, which = ids[foreign].unique(return_inverse=True)
    row[foreign] = len(listed) + which
    atom = torch.cat([listed, torch.empty_like(strangers).scatter_(0, which, foreign)])
    return Rows(row, atom, torch.arange(len(atom)) < len(listed), torch.arange(len(listed)))


class IdExchange:
    """An exchange handler (see :mod:`triforces_deploy.exchange`) between ranks that know their atoms by id.

    Args:
        ranks: all of them make one; it lives as long as their atoms and ghosts stay what they are.
        own: (L,) int64, ids of the first rows.
        strangers: (R − L,) int64, ids of the rows behind them; each is among the own ids of one other rank.
    """

    def __init__(self, ranks: Communicator, own: Tensor, strangers: Tensor) -> None:
        self._ranks, self._owned = ranks, len(own)
        theirs = ranks.everybodys(own)
        ordered, order = torch.cat(theirs).sort()
        place, known = _found(ordered, strangers)
        if not bool(known.all()):
            raise RuntimeError(f"no rank owns the atom with id {int(strangers[~known][0])}, of which there is a ghost")
        where = order[place]
        ends = torch.tensor([len(ids) for ids in theirs]).cumsum(0)
        owner = torch.searchsorted(ends, where, right=True)
        in_their_rows = where - (ends - torch.tensor([len(ids) for ids in theirs]))[owner]
        self._wanted = [torch.nonzero(owner == rank)[:, 0] + len(own) for rank in range(ranks.size)]
        self._given = ranks.trade([in_their_rows[rows - len(own)] for rows in self._wanted])

    def forward(self, h: Tensor) -> Tensor:
        out = h.to("cpu", copy=True, memory_format=torch.contiguous_format)
        received = self._ranks.trade([out[rows] for rows in self._given])
        for rows, values in zip(self._wanted, received, strict=True):
            out[rows] = values
        return out.to(h.device)

    def adjoint(self, g: Tensor) -> Tensor:
        out = g.to("cpu", copy=True, memory_format=torch.contiguous_format)
        received = self._ranks.trade([out[rows] for rows in self._wanted])
        for rows, values in zip(self._given, received, strict=True):
            accumulate(out, rows, values)
        out[self._owned :] = 0.0
        return out.to(g.device)


def _found(ordered: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Where each wanted number stands among ordered ones, and whether it does."""
    if len(ordered) == 0:
        return torch.zeros_like(wanted), torch.zeros(len(wanted), dtype=torch.bool)
    place = torch.searchsorted(ordered, wanted).clamp(max=len(ordered) - 1)
    return place, ordered[place] == wanted
