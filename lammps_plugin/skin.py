"""LAMMPS' neighbour list on the device of the model: what stays there until LAMMPS builds another.

All directed pairs within cutoff and skin, sorted by the row of their centre; on several ranks also the mirror images of
those that end at an atom of another rank, where the model reads both directions. Everything that depends on positions is
left to :mod:`triforces_deploy.lammps_plugin.on_device`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from triforces_deploy.errors import UserError
from triforces_deploy.graph import N_NUMBERS
from triforces_deploy.lammps_plugin.views import view

PADDING_ATOMS = 2
"""Behind the atoms of LAMMPS, farther apart than the cutoff: the ends of pairs that never count."""


class Frame(Protocol):
    """``tf_frame`` of ``src/abi.h``: sizes and addresses of one step."""

    atoms: int
    rows: int
    owned: int
    centres: int
    pairs: int
    positions: int | None
    numbers: int | None
    counts: int | None
    row: int | None
    centre: int | None
    first: int | None
    neighbour: int | None
    new_list: int
    new_numbers: int
    atom_virials: int
    shortest: float
    energies: int | None
    forces: int | None
    virial: int | None
    uncertainty: int | None
    atom_virial: int | None


class Sizes(NamedTuple):
    """How long tensors are; more than is needed where they are padded."""

    atoms: int
    """Owned and ghosts, without the padding atoms."""
    rows: int
    pairs: int
    """At least one more than there are: the last is never within the cutoff."""
    edges: int
    """Pairs within the cutoff."""


class Pairs(NamedTuple):
    """The list as it comes, on the device; P pairs."""

    centre: Tensor
    """(P,) int64, atoms of LAMMPS."""
    neighbour: Tensor
    """(P,) int64."""
    row: Tensor
    """(atoms,) int64."""
    owned: int
    rows: int

    @classmethod
    def of(cls, frame: Frame, mirrored: bool, device: torch.device) -> Pairs:
        """Of a frame with a new list; UserError where an atom in it is none of the potential's."""
        centre, neighbour, row = (
            view(address, (length,), "<i4").to(device, torch.int64)
            for address, length in (
                (frame.centre, frame.centres),
                (frame.neighbour, frame.pairs),
                (frame.row, frame.atoms),
            )
        )
        first = view(frame.first, (frame.centres + 1,), "<i8").to(device)
        centre = centre.repeat_interleave(first.diff(), output_size=frame.pairs)
        neighbour_row = row.index_select(0, neighbour)
        if bool((neighbour_row < 0).any()) or bool((row.index_select(0, centre) < 0).any()):
            raise UserError("an atom changed between a type of this pair style and NULL without a new neighbor list")
        if mirrored:
            foreign = neighbour_row >= frame.owned
            centre, neighbour = torch.cat([centre, neighbour[foreign]]), torch.cat([neighbour, centre[foreign]])
        return cls(centre, neighbour, row, frame.owned, frame.rows)

    def exact_sizes(self) -> Sizes:
        """No more than is needed; the number of edges is not known here."""
        return Sizes(len(self.row), self.rows, len(self.centre) + 1, 0)


class Skin(NamedTuple):
    """The list as an evaluation takes it. N rows, P pairs, E edges as in :class:`Sizes`."""

    centre: Tensor
    """(P,) int64, atoms."""
    neighbour: Tensor
    """(P,) int64, atoms."""
    edge_index: Tensor
    """(2, P) int64, rows: neighbours, then centres, which rise."""
    centre_offsets: Tensor
    """(N + 1,) int64. Where the pairs of each centre begin."""
    by_neighbour: Tensor
    """(P,) int64. The pairs sorted by the row of their neighbour."""
    neighbour_offsets: Tensor
    """(N + 1,) int64. Where those of each neighbour begin in it."""
    spare: Tensor
    """(E + 1,) int64. A pair that never counts for every place of an edge, different ones next to each other."""
    owned: Tensor
    """(N,) bool."""
    batch: Tensor
    """(N,) int64, zeros."""
    cell: Tensor
    """(1, 3, 3) float64, zeros."""
    numbers: Tensor
    """(N,) int64; padding rows have the number of the first."""
    composition: Tensor
    """(1, 119) float64."""


def skin(pairs: Pairs, sizes: Sizes, numbers: Tensor, composition: Tensor) -> Skin:
    """Pad the list to sizes, sort it, and find where each row's pairs begin.

    Padding pairs join padding rows, so that no real row gets anything from them, and different ones, so that a GPU's
    additions to one row do not wait for each other.
    """
    device = pairs.centre.device
    padding = torch.arange(sizes.pairs - len(pairs.centre), device=device)
    spare_rows = max(1, sizes.rows - pairs.rows)
    atom_row = torch.cat([pairs.row, pairs.row.new_zeros(sizes.atoms + PADDING_ATOMS - len(pairs.row))])
    centre = torch.cat([pairs.centre, torch.full_like(padding, sizes.atoms)])
    neighbour = torch.cat([pairs.neighbour, torch.full_like(padding, sizes.atoms + 1)])
    real = len(pairs.centre)
    centre_row, neighbour_row = atom_row.index_select(0, centre), atom_row.index_select(0, neighbour)
    centre_row[real:] = pairs.rows + padding % spare_rows
    neighbour_row[real:] = pairs.rows + (padding + 1) % spare_rows
    order = centre_row.argsort(stable=True)
    centre_row, neighbour_row = centre_row[order], neighbour_row[order]
    by_neighbour = neighbour_row.argsort(stable=True)
    places = torch.arange(sizes.edges + 1, device=device)
    return Skin(
        centre=centre[order],
        neighbour=neighbour[order],
        edge_index=torch.stack([neighbour_row, centre_row]),
        centre_offsets=_offsets(centre_row, sizes.rows),
        by_neighbour=by_neighbour,
        neighbour_offsets=_offsets(neighbour_row, sizes.rows),
        spare=real + places % len(padding),
        owned=torch.arange(sizes.rows, device=device) < pairs.owned,
        batch=torch.zeros(sizes.rows, dtype=torch.int64, device=device),
        cell=torch.zeros(1, 3, 3, dtype=torch.float64, device=device),
        numbers=padded_numbers(numbers, sizes.rows),
        composition=composition,
    )


def padded_numbers(numbers: Tensor, n_rows: int) -> Tensor:
    """(rows,) → (n_rows,); an element that is there is one that the model knows."""
    first = numbers[0] if len(numbers) else 0
    return torch.cat([numbers, numbers.new_ones(n_rows - len(numbers)) * first])


def numbers_of(frame: Frame) -> tuple[Tensor, Tensor]:
    """Atomic numbers of the rows and the composition of the whole system, copies on the CPU."""
    composition = view(frame.counts, (1, N_NUMBERS), "<i8").to(torch.float64)
    return view(frame.numbers, (frame.rows,), "<i8").clone(), composition


def _offsets(sorted_or_not: Tensor, n_rows: int) -> Tensor:
    """(n_rows + 1,): how many entries lie below each row."""
    below = torch.bincount(sorted_or_not, minlength=n_rows).cumsum(0)[:n_rows]
    return torch.cat([below.new_zeros(1), below])
