"""eSEN and eSCN-MD: equivariant message passing whose tensor products are convolutions in the frames of the edges.

Fu et al., "Learning smooth and expressive interatomic potentials for physical property prediction" (2025); Wood et al.,
"UMA: a family of universal models for atoms" (2025), without its mixture of experts. Features turn with the structure,
exactly where the feed-forward is spectral; not with its mirror image, from which the complex maps on the edges tell it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from triforces_deploy.backbones.base import Backbone
from triforces_deploy.errors import UserError
from triforces_deploy.exchange import exchange
from triforces_deploy.graph import N_NUMBERS, Graph
from triforces_deploy.nn.blocks import evaluate_twice
from triforces_deploy.nn.edge_frames import EdgeFrames
from triforces_deploy.nn.irreps import GridFeedForward, IrrepsNorm, SpectralFeedForward
from triforces_deploy.nn.message_passing import Ends, Messages, over_atoms, over_edges
from triforces_deploy.nn.pair_radial import PairRadial
from triforces_deploy.nn.radial import gaussians, lengths, polynomial_envelope
from triforces_deploy.nn.so2 import Pair, SO2Convolution, gated, weighted_orders
from triforces_deploy.nn.spherical import L_MAX
from triforces_deploy.nn.system_embedding import MOST, SystemEmbedding

ENVELOPE_POWER = 5
GAUSSIAN_WIDTH = 2.0
"""In units of the distance between two centres."""
DEGREE_SCALE = 5.0
"""About the root of the number of neighbours; divides the sum that the first coefficients of an atom are."""


@dataclasses.dataclass(frozen=True)
class ESENConfig:
    """Sizes of eSEN and what the system is; the defaults are eSEN-sm. eSEN-30M has 10 layers, l_max 3 and no system."""

    channels: int = 128
    """Of the coefficients of an atom."""
    hidden: int = 128
    """Channels inside messages and feed-forwards."""
    edge_channels: int = 128
    """Width of the radial perceptrons and of the elements' embeddings that they read."""
    n_layers: int = 4
    l_max: int = 2
    m_max: int = 2
    """Highest order that messages keep in the frame of their edge."""
    n_gaussians: int = 64
    feed_forward: Literal["spectral", "grid"] = "spectral"
    """A grid breaks rotational symmetry by as much as it is coarse."""
    grid_resolution: int | None = None
    """Polar angles and azimuths of the grid; an even number."""
    system: Literal["table", "waves", "linear", "none"] = "table"
    """How charge and spin are embedded; 'none' leaves out what is said of the system as a whole."""
    charge: int = 0
    """e."""
    spin: int = 0
    """Multiplicity 2S + 1; 0 says nothing of it."""
    datasets: tuple[str, ...] = ()
    """Data sets that the model tells apart."""
    dataset: str | None = None
    """The one whose labels are wanted."""

    def check(self) -> None:
        """UserError where a size makes no sense."""
        sizes = dataclasses.asdict(self)
        for name, least in {
            "channels": 1,
            "hidden": 1,
            "edge_channels": 1,
            "n_layers": 1,
            "l_max": 1,
            "n_gaussians": 2,
        }.items():
            if sizes[name] < least:
                raise UserError(f"esen: {name} must be at least {least}, got {sizes[name]}")
        if self.l_max > L_MAX:
            raise UserError(f"esen: l_max can be at most {L_MAX}, got {self.l_max}")
        if not 0 <= self.m_max <= self.l_max:
            raise UserError(f"esen: m_max must be from 0 to l_max = {self.l_max}, got {self.m_max}")
        least = 2 * self.l_max + 2
        if self.grid_resolution is not None and (self.grid_resolution < least or self.grid_resolution % 2):
            raise UserError(f"esen: grid_resolution must be even and at least {least}, got {self.grid_resolution}")
        self._check_system()

    def _check_system(self) -> None:
        if self.system == "waves" and self.channels % 2:
            raise UserError(f"esen: system 'waves' needs an even number of channels, got {self.channels}")
        if not -MOST <= self.charge <= MOST:
            raise UserError(f"esen: charge must be from -{MOST} to {MOST}, got {self.charge}")
        if not 0 <= self.spin <= MOST:
            raise UserError(f"esen: spin must be from 0 (unknown) to {MOST}, got {self.spin}")
        if self.system == "none" and (self.charge or self.spin or self.datasets):
            raise UserError("esen: system 'none' knows no charge, spin or datasets; choose 'table' or leave them out")
        if self.datasets and self.dataset not in self.datasets:
            raise UserError(f"esen: dataset must be one of {', '.join(self.datasets)}; got {self.dataset}")
        if self.dataset is not None and not self.datasets:
            raise UserError(f"esen: dataset is {self.dataset}, but datasets names none")


class ESEN(Backbone):
    """Spherical coefficients of atoms, x (N, (l_max+1)², C), and n_layers of messages and feed-forwards on them.

    With the frame D of an edge from its centre i to its neighbour j (edge_frames.py), distance r, envelope u and the
    vector s of the system:

        x_i ← E[Z_i] + s + (1/5) Σ_j u Dᵀ R(r, Z_i, Z_j)
        x̂ = norm(x) + s,    x_i ← x_i + Σ_j u Dᵀ C₂ gate(C₁ R(r, Z_i, Z_j) D [x̂_j ‖ x̂_i])
        x ← x + FF(norm(x))

    Features are the scalars of the last, normed x; :meth:`coefficients` has the vectors and tensors too.
    """

    Config: ClassVar[Any] = ESENConfig

    smooth = True
    conservative = True
    separable = True
    bidirectional = False

    def __init__(self, config: ESENConfig, cutoff: float, _numbers: Sequence[int] = ()) -> None:
        super().__init__()
        config.check()
        self.config = config
        self.cutoff = cutoff
        self.width = config.channels
        # What an atom is before the first layer is already a sum over its neighbours, which a ghost does not have.
        self.n_exchanges = config.n_layers
        self.receptive_field = (config.n_layers + 1) * cutoff
        self.directions = "harmonics" if config.l_max >= 2 else "none"
        self.embedding = nn.Embedding(N_NUMBERS, config.channels)
        self.of_centre = nn.Embedding(N_NUMBERS, config.edge_channels)
        self.of_neighbour = nn.Embedding(N_NUMBERS, config.edge_channels)
        for embedding in (self.of_centre, self.of_neighbour):
            nn.init.uniform_(embedding.weight, -0.001, 0.001)
        self.system = _system(config)
        self.frames = EdgeFrames(config.l_max, config.m_max)
        self.degree = PairRadial(config.n_gaussians, config.edge_channels, (config.l_max + 1) * config.channels)
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.n_layers)])
        self.norm = IrrepsNorm(config.l_max, config.channels)

    def forward(self, graph: Graph) -> Tensor:
        """Scalars of the atoms, (N, channels), in the type of the parameters."""
        return self.coefficients(graph)[:, 0]

    def with_harmonics(self, graph: Graph) -> tuple[Tensor, Tensor | None]:
        """Scalars (N, channels), and coefficients of degrees 0 to 2, (N, 9, channels)."""
        coefficients = self.coefficients(graph)
        return coefficients[:, 0], coefficients[:, :9]

    def coefficients(self, graph: Graph) -> Tensor:
        """All coefficients of the atoms, (N, (l_max+1)², channels); 1 … 3 are a vector (x, y, z)."""
        scalars, kinds = self.embedding(graph.numbers), self._kinds(graph.numbers)
        system = None if self.system is None else self.system()
        if system is not None:
            scalars = scalars + system
        sums, edges = self._start(graph, kinds)
        x = torch.cat([sums[:, :1] + scalars[:, None], sums[:, 1:]], dim=1)
        for layer in self.layers:
            x = cast(Layer, layer)(x, system, kinds, edges, graph.edge_index)
        return over_atoms(self.norm, x, widest=x.shape[1] * x.shape[2])

    def _kinds(self, numbers: Tensor) -> Kinds:
        return Kinds(self.of_centre(numbers), self.of_neighbour(numbers))

    def _start(self, graph: Graph, kinds: Kinds) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What the neighbours are from the outset, (N, (l_max+1)², C); and of each edge frame, Gaussians and envelope."""
        n_degrees = self.config.l_max + 1

        def on_edges(vectors: Tensor, *of_kinds: Tensor) -> Messages:
            *edges, message = _remembering(self.degree)(of_vectors, vectors, *of_kinds)
            return Messages(tuple(edges), (message,))

        def of_vectors(vectors: Tensor, *of_kinds: Tensor) -> tuple[Tensor, ...]:
            frames, basis, envelope = self.edge_inputs(vectors)
            radial = _looked_up(self.degree, basis, *of_kinds) * (envelope / DEGREE_SCALE)
            scalars = frames[:, :n_degrees].transpose(1, 2)
            return frames, basis, envelope, torch.bmm(scalars, radial.unflatten(1, (n_degrees, -1)))

        vectors = graph.edge_vector.to(self.embedding.weight.dtype)
        widest = n_degrees**2 * self.config.channels
        m = over_edges(on_edges, graph.edge_index, graph.numbers.shape[0], (vectors,), kinds.ends(self.degree), widest)
        return m.to_centre[0], m.edges

    def edge_inputs(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Edge vectors (E, 3) → frames (E, rows, (l_max+1)²), Gaussians (E, n_gaussians) and envelopes (E, 1)."""
        r = lengths(vectors)
        basis = gaussians(r, self.cutoff, self.config.n_gaussians, GAUSSIAN_WIDTH)
        return self.frames(vectors / r[:, None]), basis, polynomial_envelope(r, self.cutoff, ENVELOPE_POWER)[:, None]


class Kinds(NamedTuple):
    """What the atoms are to radial functions, (N, edge_channels) each."""

    centre: Tensor
    neighbour: Tensor

    def ends(self, radial: PairRadial) -> tuple[Ends, Ends]:
        """How the edges read them."""
        centre = Ends(self.centre, at_centre=radial.at_centre, apart=True)
        return centre, Ends(self.neighbour, at_neighbour=radial.at_neighbour, apart=True)


class Layer(nn.Module):
    """Messages and a feed-forward, each on normed coefficients and added to what was."""

    def __init__(self, config: ESENConfig) -> None:
        super().__init__()
        l_max, m_max, channels, hidden = config.l_max, config.m_max, config.channels, config.hidden
        self.l_max, self.m_max, self.channels, self.hidden = l_max, m_max, channels, hidden
        n_pairs = sum(l_max + 1 - m for m in range(1, m_max + 1))
        self.message_norm, self.atom_norm = IrrepsNorm(l_max, channels), IrrepsNorm(l_max, channels)
        self.radial = PairRadial(config.n_gaussians, config.edge_channels, (l_max + 1 + n_pairs) * 2 * channels)
        self.first = SO2Convolution(l_max, m_max, 2 * channels, hidden, l_max * hidden)
        self.second = SO2Convolution(l_max, m_max, hidden, channels)
        self.feed_forward: SpectralFeedForward | GridFeedForward
        if config.feed_forward == "spectral":
            self.feed_forward = SpectralFeedForward(l_max, channels, hidden)
        else:
            self.feed_forward = GridFeedForward(l_max, channels, hidden, config.grid_resolution)

    def forward(
        self,
        x: Tensor,
        system: Tensor | None,
        kinds: Kinds,
        edges: tuple[Tensor, ...],
        edge_index: Tensor,
    ) -> Tensor:
        """New coefficients from old ones, (N, (l_max+1)², C)."""
        size = x.shape[1] * x.shape[2]
        normed = over_atoms(self.message_norm, x, widest=size)
        if system is not None:
            normed = torch.cat([normed[:, :1] + system, normed[:, 1:]], dim=1)
        normed = exchange(normed.flatten(1)).unflatten(1, x.shape[1:])
        ends = (*kinds.ends(self.radial), Ends(normed, _itself, _itself, apart=True))
        messages = partial(self.messages, self.first.complex_maps(), self.second.complex_maps())
        m = over_edges(messages, edge_index, x.shape[0], edges, ends, 2 * size)
        return over_atoms(self._update, x, *m.to_centre, widest=self.feed_forward.widest)

    def messages(
        self, first: list[Pair], second: list[Pair], frames: Tensor, basis: Tensor, envelope: Tensor, *ends: Tensor
    ) -> Messages:
        """Complex maps, frames (E, rows, (l_max+1)²), …, and what is read of the atoms → messages (E, (l_max+1)², C).

        Of all that lies between, only the results of the convolutions are remembered for the derivative: two thirds of the
        arithmetic are in them, and a small part of the numbers.
        """
        evaluate = _remembering(self)
        inputs = evaluate(self._inputs, frames, basis, *ends)
        hidden = evaluate(self._gated, *self.first(list(inputs), first))
        turned = torch.cat(self.second(list(hidden), second), dim=1).unflatten(1, (frames.shape[1], -1))
        back = (frames * envelope[:, None]).transpose(1, 2)
        return Messages(to_centre=(torch.bmm(back, turned),))

    def _inputs(self, frames: Tensor, basis: Tensor, *ends: Tensor) -> tuple[Tensor, ...]:
        """What the first convolution is given."""
        *of_kinds, centres, at_centre, neighbours, at_neighbour = ends
        radial = _looked_up(self.radial, basis, *of_kinds)
        both = torch.cat([neighbours.index_select(0, at_neighbour), centres.index_select(0, at_centre)], dim=2)
        return tuple(weighted_orders(torch.bmm(frames, both), radial, self.l_max, self.m_max))

    def _gated(self, *parts: Tensor) -> tuple[Tensor, ...]:
        return tuple(gated(list(parts), self.l_max))

    def _update(self, x: Tensor, messages: Tensor) -> Tensor:
        x = x + messages
        return x + cast(Tensor, self.feed_forward(self.atom_norm(x)))


def _itself(x: Tensor) -> Tensor:
    return x


def _looked_up(
    radial: PairRadial, basis: Tensor, centres: Tensor, at_centre: Tensor, neighbours: Tensor, at_neighbour: Tensor
) -> Tensor:
    return cast(Tensor, radial(basis, centres.index_select(0, at_centre), neighbours.index_select(0, at_neighbour)))


def _remembering(module: nn.Module) -> Callable[..., tuple[Tensor, ...]]:
    """How to evaluate a function with parameters of this module: once in training, else once more for the derivative."""
    trained = any(parameter.requires_grad for parameter in module.parameters())
    return _at_once if trained else evaluate_twice


def _at_once(function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
    return function(*tensors)


def _system(config: ESENConfig) -> SystemEmbedding | None:
    if config.system == "none":
        return None
    dataset = config.datasets.index(config.dataset) if config.dataset is not None else None
    return SystemEmbedding(config.system, config.charge, config.spin, dataset, len(config.datasets), config.channels)
