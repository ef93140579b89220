"""The lattice encoding: nine numbers of a cell that the structure stream may see beside the neighbours of an atom.

TriForces names nine features aware of scale: three normalised lengths, three normalised angles, two whose definition is lost
and one measure of orthogonality. Ours are

    f1..3 = |a|/L, |b|/L, |c|/L  with  L = V^⅓        f7 = log(V / Å³)
    f4..6 = α/π, β/π, γ/π                             f8 = log(V/N / Å³)        f9 = V/(|a||b||c|)

where the normalisation of f1 to f6, and f7 to f9, are our completion. They change with the choice of cell and, f1 to f3 and
f7, with a supercell; and they make the energy depend on the cell in a way that forces between atoms do not see. So the
encoding is for training and comparison, and export freezes it. Without a cell it is zero; a molecule in a box has one, since
a graph does not tell in which directions it is periodic.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from triforces_deploy.nn.mlp import mlp

N_FEATURES = 9


class LatticeEncoding(nn.Module):
    """Features of structures from their cells; zero where there is no volume."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = mlp([N_FEATURES, width, width])

    def forward(self, cell: Tensor, n_atoms: Tensor) -> Tensor:
        """(G, 3, 3) Å and (G,) → (G, width)."""
        dtype = next(self.parameters()).dtype
        periodic = (volumes(cell) > 0).to(dtype)
        return cast(Tensor, self.layers(lattice_features(cell, n_atoms).to(dtype)) * periodic[:, None])


def volumes(cell: Tensor) -> Tensor:
    """(G, 3, 3) → (G,) Å³."""
    volume: Tensor = torch.linalg.det(cell).abs()
    return volume


def lattice_features(cell: Tensor, n_atoms: Tensor) -> Tensor:
    """The nine features of each cell: (G, 3, 3) float64 Å and (G,) → (G, 9); those of a unit cube where there is no volume."""
    flat = volumes(cell) == 0
    cell = torch.where(flat[:, None, None], torch.eye(3, dtype=cell.dtype), cell)
    volume, lengths = volumes(cell), cell.norm(dim=2)
    unit = cell / lengths[:, :, None]
    cosines = (unit[:, [1, 0, 0]] * unit[:, [2, 2, 1]]).sum(2)  # b·c, a·c, a·b
    return torch.cat(
        [
            lengths / volume[:, None] ** (1 / 3),
            cosines.clamp(-1.0, 1.0).arccos() / math.pi,
            torch.stack([volume.log(), (volume / n_atoms.clamp(min=1.0)).log(), volume / lengths.prod(1)], 1),
        ],
        dim=1,
    )
