"""One evaluation from positions, all of it on the model's device: edges, model, forces on rows, virial.

Nothing here but the count of the edges makes the host wait for the device, and with padded sizes nothing at all, so that
the whole can be recorded once and repeated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from triforces_deploy import exchange
from triforces_deploy.graph import Graph
from triforces_deploy.lammps_plugin.skin import Skin
from triforces_deploy.nn.scatter import segment_sum
from triforces_deploy.potential import Potential


def evaluate(
    potential: Potential, skin: Skin, positions: Tensor, handler: exchange.Handler | None, padded: bool, atom_virials: bool
) -> Tensor:
    """Evaluate the potential at positions.

    Args:
        potential: on the device of everything else.
        skin: the list, N rows and P pairs.
        positions: (atoms + 2, 3) float64, Å, the padding atoms among them.
        handler: moves features between ranks, where there are several.
        padded: take as many edges as ``skin`` has places for, padding ones among them, instead of counting them first.
        atom_virials: return those too.

    Returns:
        float64, one after another as :class:`Layout` says: forces (N, 3) eV/Å, energies (N,) eV, LAMMPS' virial (6,) eV,
        the square of the shortest distance, Å², the number of edges, uncertainties (N,) eV where the potential tells them,
        and virials of the rows (N, 6) where wanted. With more edges than places all but distance and number are wrong.
    """
    vector = positions.index_select(0, skin.neighbour) - positions.index_select(0, skin.centre)
    distance2 = vector.square().sum(1)
    near = distance2 < potential.facts.cutoff**2
    kept = compacted(near, skin.spare) if padded else near.nonzero()[:, 0]
    graph = Graph(
        numbers=skin.numbers,
        edge_index=skin.edge_index.index_select(1, kept),
        edge_vector=vector.index_select(0, kept),
        batch=skin.batch,
        owned=skin.owned,
        composition=skin.composition,
        cell=skin.cell,
    )
    energies, edge_forces, uncertainty, *_ = potential.evaluate_unchecked(graph, handler)
    virials = -edge_virials(graph.edge_vector, edge_forces)
    parts = [
        forces(edge_forces, kept, skin).flatten(),
        energies.to(torch.float64),
        virials.sum(0),
        distance2.min()[None],
        near.sum()[None].to(torch.float64),
    ]
    if uncertainty is not None:
        parts.append(uncertainty.to(torch.float64))
    if atom_virials:
        parts.append(0.5 * (_by_centre(virials, kept, skin) + _by_neighbour(virials, kept, skin)).flatten())
    return torch.cat(parts)


class Layout:
    """Where the parts of the result of :func:`evaluate` begin, for N rows."""

    def __init__(self, n_rows: int, uncertain: bool) -> None:
        self.energies = 3 * n_rows
        self.virial = 4 * n_rows
        self.shortest = self.virial + 6
        self.edges = self.shortest + 1
        self.uncertainty = self.edges + 1
        self.atom_virials = self.uncertainty + n_rows * uncertain


def compacted(near: Tensor, spare: Tensor) -> Tensor:
    """Numbers of the pairs that are near, in order, and spare ones behind them.

    Args:
        near: (P,) bool.
        spare: (E + 1,) int64, what stands where there is no near pair; its last place takes what has none.

    Returns:
        (E,) int64; the first E near pairs where there are more.
    """
    last = len(spare) - 1
    place = torch.where(near, near.cumsum(0) - 1, last).clamp(max=last)
    return spare.scatter(0, place, torch.arange(len(near), device=near.device))[:-1]


def edge_virials(vector: Tensor, edge_forces: Tensor) -> Tensor:
    """(E, 6), eV: the symmetric part of r ⊗ f in LAMMPS' order, xx, yy, zz, xy, xz, yz."""
    x, y, z = vector.unbind(1)
    fx, fy, fz = edge_forces.unbind(1)
    shear = (0.5 * (x * fy + y * fx), 0.5 * (x * fz + z * fx), 0.5 * (y * fz + z * fy))
    return torch.stack([x * fx, y * fy, z * fz, *shear], dim=1)


def forces(edge_forces: Tensor, kept: Tensor, skin: Skin) -> Tensor:
    """F = Σ_{e: centre} f_e − Σ_{e: neighbour} f_e, (N, 3)."""
    return _by_centre(edge_forces, kept, skin) - _by_neighbour(edge_forces, kept, skin)


def _by_centre(values: Tensor, kept: Tensor, skin: Skin) -> Tensor:
    return segment_sum(_on_pairs(values, kept, skin), skin.centre_offsets)


def _by_neighbour(values: Tensor, kept: Tensor, skin: Skin) -> Tensor:
    return segment_sum(_on_pairs(values, kept, skin).index_select(0, skin.by_neighbour), skin.neighbour_offsets)


def _on_pairs(values: Tensor, kept: Tensor, skin: Skin) -> Tensor:
    """(E, …) → (P, …), zero where no edge is; several padding edges may lie on one padding pair, of no consequence."""
    return values.new_zeros(len(skin.centre), *values.shape[1:]).index_copy(0, kept, values)
