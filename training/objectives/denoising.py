"""Denoising (TriForces, eq. 11): tell the displacements ε of the atoms, L = 1/N Σ_i |f(G̃)_i − ε_i|².

Three heads. 'vector', f_i = Σ_j a(h_i, h_j, r_ij) u(r_ij) r̂_ij, turns with the structure if the features h do not change.
'direct' is a perceptron of h_i and has to learn rotations. 'gradient' has no head of its own: f = +∂E/∂x, so that the force
−f pulls each atom back to where it came from and clean structures are minima of the energy, as they are of a force field's.
(The other sign would make them maxima.) Its energies read 1 eV/Å² per Å of noise.

Alone, of noise of one width, this is the pretraining of Zaidi et al. (2022): ``objective: {denoise: {target: unit}}`` and
``views: {noise: [0.1, 0.1], draw: []}``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from triforces_deploy import derivatives
from triforces_deploy.nn.mlp import mlp
from triforces_deploy.nn.radial import bessel, lengths, polynomial_envelope
from triforces_deploy.nn.scatter import scatter_sum
from triforces_deploy.training.objectives.base import Seen, Term
from triforces_deploy.training.objectives.config import DenoiseConfig

HIDDEN = 128
N_RADIAL = 8
ENVELOPE_POWER = 6


def denoising_loss(prediction: Tensor, noise: Tensor) -> Tensor:
    """(N, 3), (N, 3) → (): the squared error of an atom's vector, mean over atoms."""
    return (prediction - noise).square().sum(dim=1).mean()


class Denoising(Term):
    """The loss with one of the heads.

    Args:
        config: which head, which target.
        widths: features of each stream, by name.
        cutoff: Å.
    """

    def __init__(self, config: DenoiseConfig, widths: Mapping[str, int], cutoff: float) -> None:
        super().__init__()
        self.config = config
        width = sum(widths.values())
        heads = {"vector": lambda: VectorHead(width, cutoff), "direct": lambda: DirectHead(width), "gradient": lambda: None}
        self.head = heads[config.head]()
        self.reads_energies = config.head == "gradient"

    def forward(self, seen: Seen) -> Tensor:
        target = seen.views.noise
        if self.config.target == "unit":
            target = target / seen.views.sigma[:, None]
        prediction = by_gradient(seen) if self.head is None else self.head(seen)
        return denoising_loss(prediction, target.to(prediction.dtype))


def by_gradient(seen: Seen) -> Tensor:
    """∂E/∂x, (N, 3): minus the forces of the energies."""
    assert seen.energies is not None
    (edge_forces,) = torch.autograd.grad(seen.energies.sum(), seen.graph.edge_vector, create_graph=True)
    return -derivatives.forces(edge_forces, seen.graph)


class DirectHead(nn.Module):
    """A perceptron of each atom's features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = mlp([width, HIDDEN, HIDDEN, 3])

    def forward(self, seen: Seen) -> Tensor:
        """(N, 3)."""
        found: Tensor = self.layers(seen.joint())
        return found


class VectorHead(nn.Module):
    """Σ_j a_ij u(r_ij) r̂_ij with a_ij = MLP(A h_i + B h_j + C ρ(r_ij)), ρ Bessel functions, u the envelope."""

    def __init__(self, width: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.at_centre, self.at_neighbour = nn.Linear(width, HIDDEN), nn.Linear(width, HIDDEN, bias=False)
        self.radial = nn.Linear(N_RADIAL, HIDDEN, bias=False)
        self.layers = mlp([HIDDEN, HIDDEN, 1])

    def forward(self, seen: Seen) -> Tensor:
        """(N, 3)."""
        features, graph = seen.joint(), seen.graph
        neighbour, centre = graph.edge_index
        vector = graph.edge_vector.to(features.dtype)
        r = lengths(vector)
        radial = self.radial(bessel(r, self.cutoff, N_RADIAL))
        at_centre, at_neighbour = self.at_centre(features), self.at_neighbour(features)
        hidden = functional.silu(at_centre.index_select(0, centre) + at_neighbour.index_select(0, neighbour) + radial)
        along = self.layers(hidden) * polynomial_envelope(r, self.cutoff, ENVELOPE_POWER)[:, None] * vector / r[:, None]
        return scatter_sum(along, centre, features.shape[0])
