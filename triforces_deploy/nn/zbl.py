"""Screened nuclear repulsion: the wall that a trained network lacks at distances nobody labelled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from ase.data import atomic_numbers, covalent_radii
from torch import Tensor, nn

from triforces_deploy.config import ZBLSwitch
from triforces_deploy.errors import UserError
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
    shift: int = 0
    """Added to the atomic numbers before charges and radii are looked up."""


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

ORB = MACE._replace(shift=1)
"""What the public Orb-v3 models were trained with: every nucleus counts as the next element's, silicon as phosphorus."""

FORMS = {"universal": UNIVERSAL, "mace": MACE, "orb": ORB, "orb-mean": ORB}
"""Name in a configuration → constants. What 'mean' adds is in model.py."""


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
        numbers = graph.numbers + self.screening.shift
        radii = self.radii_pm.index_select(0, numbers.clamp(max=N_NUMBERS - 1)).to(torch.float64) / 100.0
        nuclei = torch.stack([numbers.to(torch.float64), radii], dim=1)

        def half(vectors: Tensor, centre: Tensor, neighbour: Tensor) -> Messages:
            r = lengths(vectors)
            envelope = polynomial_envelope(r, centre[:, 1] + neighbour[:, 1], self.power)
            return Messages(to_centre=(0.5 * pair_energy(r, centre[:, 0], neighbour[:, 0], self.screening) * envelope,))

        ends = (Ends(nuclei, _as_they_are, _as_they_are),)
        (energies,) = over_edges(half, graph.edge_index, graph.numbers.shape[0], (graph.edge_vector,), ends).to_centre
        return energies


FEMTOMETRES = 100_000
"""In 1 Å; switching distances are whole numbers of them, for the reason that radii are whole picometres."""


class Overlay(nn.Module):
    """Fades a model into the repulsion where atoms come closer than it has ever seen them.

    E_i = f(Σ_j s(r_ij)) ε_i + ½ Σ_j s(r_ij) V(r_ij)

    s falls from 1 at ``inner`` to 0 at ``outer`` of the pair, and f from 1 at 0 to 0 at 1, both with two derivatives. So an
    atom with no neighbour closer than ``outer`` keeps its ε_i to the last bit, and one with a neighbour closer than
    ``inner`` has none of it left. Like the repulsion it is float64 throughout, and nothing in it is trained.

    Args:
        switches: one for each pair of elements; where there is none, nothing is overlaid.
        cutoff: Å, of the graph.
    """

    def __init__(self, switches: Sequence[ZBLSwitch], cutoff: float) -> None:
        super().__init__()
        distances = torch.zeros(N_NUMBERS * N_NUMBERS, 2, dtype=torch.int64)
        distances[:, 1] = 1
        for switch in switches:
            a, b = (int(atomic_numbers.get(symbol, 0)) for symbol in (switch.first, switch.second))
            if a == 0 or b == 0 or not 0.0 <= switch.inner < switch.outer <= cutoff:
                raise UserError(f"model.zbl_overlay: {switch} is no pair of elements with 0 ≤ inner < outer ≤ cutoff")
            for row in (a * N_NUMBERS + b, b * N_NUMBERS + a):
                distances[row] = torch.tensor([round(x * FEMTOMETRES) for x in (switch.inner, switch.outer)])
        self.register_buffer("distances_fm", distances, persistent=False)

    distances_fm: Tensor
    """(119 · 119, 2) int64, fm. Inner and outer distance of each ordered pair of atomic numbers."""

    def forward(self, energies: Tensor, graph: Graph) -> Tensor:
        """Energies of the atoms without their references, (N,) float64 eV, → the same with the repulsion."""

        def edge(vectors: Tensor, centre: Tensor, neighbour: Tensor) -> Messages:
            r = lengths(vectors)
            pair = (centre * N_NUMBERS + neighbour).to(torch.int64)
            inner, outer = (self.distances_fm.index_select(0, pair).to(torch.float64) / FEMTOMETRES).unbind(1)
            switch = polynomial_envelope((r - inner).clamp(min=0.0), outer - inner, 3)
            return Messages(to_centre=(switch, 0.5 * switch * pair_energy(r, centre, neighbour)))

        ends = (Ends(graph.numbers.to(torch.float64), _as_they_are, _as_they_are),)
        sums = over_edges(edge, graph.edge_index, graph.numbers.shape[0], (graph.edge_vector,), ends)
        met, repulsion = sums.to_centre
        return energies * polynomial_envelope(met, 1.0, 2) + repulsion


def _as_they_are(nuclei: Tensor) -> Tensor:
    return nuclei
