"""Screened nuclear repulsion: the wall that a trained network lacks at distances nobody labelled."""

from __future__ import annotations

from typing import NamedTuple

import torch
from ase.data import covalent_radii
from torch import Tensor, nn

from triforces_deploy.graph import N_NUMBERS, Graph
from triforces_deploy.nn.message_passing import Ends, Messages, over_edges
from triforces_deploy.nn.radial import lengths, polynomial_envelope

ENVELOPE_POWER = 6
"""The p of the envelope; with 6 the repulsion is untouched below about a third of the sum of the radii."""


class Screening(NamedTuple):
    """Constants of a screened Coulomb repulsion, V(r) = e² Z Z' φ(r/a) / r  with  φ(x) = Σ_k c_k exp(−d_k x)."""

    c: tuple[float, ...]
    """Weights of the exponentials."""
    d: tuple[float, ...]
    """Their decay rates."""
    length: float
    """Å. Numerator of the screening length, a = length / (Z^power + Z'^power)."""
    power: float
    coulomb: float
    """e² in eV Å."""


UNIVERSAL = Screening(
    c=(0.18175, 0.50986, 0.28022, 0.02817),
    d=(3.19980, 0.94229, 0.40290, 0.20162),
    length=0.46850,
    power=0.23,
    coulomb=14.399645,
)
"""The universal potential of Ziegler, Biersack and Littmark (1985), to the digits that LAMMPS' ``pair_style zbl`` has."""

MACE = Screening(
    c=(0.1818, 0.5099, 0.2802, 0.02817),
    d=(3.2, 0.9423, 0.4028, 0.2016),
    length=0.4543 * 0.529,
    power=0.3,
    coulomb=14.3996,
)
"""What the public MACE models were trained with: shorter than the universal one, with another power of the charges."""

FORMS = {"universal": UNIVERSAL, "mace": MACE}
"""Name in a configuration → constants."""


def pair_energy(r: Tensor, z_centre: Tensor, z_neighbour: Tensor, screening: Screening = UNIVERSAL) -> Tensor:
    """V(r) of pairs of nuclei, without a cutoff.

    Args:
        r: (E,) float64, Å.
        z_centre: (E,) float64. Nuclear charges.
        z_neighbour: (E,) float64.
        screening: the constants.

    Returns:
        (E,) float64, eV.
    """
    a = screening.length / (z_centre**screening.power + z_neighbour**screening.power)
    x = r / a
    phi = sum((c * torch.exp(-d * x) for c, d in zip(screening.c, screening.d, strict=True)), torch.zeros_like(x))
    return screening.coulomb * z_centre * z_neighbour / r * phi


class ZBL(nn.Module):
    """The repulsion of each pair times an envelope that ends, with two derivatives, at the sum of the covalent radii.

    Nothing is trained and everything is float64, whatever the precision of the network beside it. Radii that add up to
    more than the cutoff of the graph are cut there; no pair of elements does so with the usual 5 or 6 Å.
    """

    def __init__(self, screening: Screening = UNIVERSAL, power: int = ENVELOPE_POWER) -> None:
        super().__init__()
        self.screening, self.power = screening, power
        # Whole picometres, because a change of the network's precision also rounds the floating-point buffers.
        picometres = torch.tensor([round(100.0 * float(r)) for r in covalent_radii[:N_NUMBERS]], dtype=torch.int64)
        self.register_buffer("radii_pm", picometres, persistent=False)

    radii_pm: Tensor
    """(119,) int64, pm. Covalent radii of Cordero et al. (2008) as ASE lists them."""

    def forward(self, graph: Graph) -> Tensor:
        """Energies of the atoms, (N,) float64, eV: half of each pair goes to either atom."""
        radii = self.radii_pm.index_select(0, graph.numbers).to(torch.float64) / 100.0
        nuclei = torch.stack([graph.numbers.to(torch.float64), radii], dim=1)

        def half(vectors: Tensor, centre: Tensor, neighbour: Tensor) -> Messages:
            r = lengths(vectors)
            envelope = polynomial_envelope(r, centre[:, 1] + neighbour[:, 1], self.power)
            return Messages(to_centre=(0.5 * pair_energy(r, centre[:, 0], neighbour[:, 0], self.screening) * envelope,))

        ends = (Ends(nuclei, _as_they_are, _as_they_are),)
        (energies,) = over_edges(half, graph.edge_index, graph.numbers.shape[0], (graph.edge_vector,), ends).to_centre
        return energies


def _as_they_are(nuclei: Tensor) -> Tensor:
    return nuclei
