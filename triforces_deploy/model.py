"""The model: three streams, their concatenation, and an energy that is a sum over atoms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from triforces_deploy import derivatives
from triforces_deploy.backbones.base import Backbone
from triforces_deploy.backbones.table import BACKBONES, backbone_class
from triforces_deploy.config import ModelConfig, read
from triforces_deploy.direct import Direct, DirectHeads
from triforces_deploy.errors import UserError
from triforces_deploy.graph import N_NUMBERS, Graph
from triforces_deploy.heads import EnergyHead, count_owned
from triforces_deploy.nn.zbl import FORMS, ZBL, Overlay
from triforces_deploy.payloads.base import FORCES, STRESS, UNCERTAINTY
from triforces_deploy.potential import Facts
from triforces_deploy.properties import property_heads
from triforces_deploy.streams.composition import CompositionStream, CompositionTable
from triforces_deploy.streams.structure import StructureStream


class Model(nn.Module):
    """TriForces: h_i = [h_i^composition ‖ h_i^structure ‖ h_i^interaction],  E = Σ_i (s·ε(h_i) + E0[Z_i]).

    Other readouts than this sum are in heads.py. A model with ``max_neighbours`` expects graphs that are cut to it. A model
    with ``direct`` also reads forces and stress off the features; the derivative of its energy is something else then.
    Energies are in eV. The network computes in the type of its parameters; references, scale and the sum are float64.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        numbers = config.numbers()
        if not numbers:
            raise UserError("model.elements is empty; name the chemical elements, e.g. [Si, Ge]")
        if len(set(numbers)) != len(numbers):
            raise UserError(f"model.elements names an element twice: {', '.join(config.elements)}")
        if config.cutoff <= 0:
            raise UserError(f"model.cutoff must be positive, got {config.cutoff}")
        if config.max_neighbours is not None and config.max_neighbours < 1:
            raise UserError(f"model.max_neighbours must be at least 1, or null for no cap; got {config.max_neighbours}")
        if config.head_skip and config.readout != "sum":
            raise UserError(f"model.head_skip goes with model.readout: sum only, got {config.readout}")
        if config.zbl_power < 1:
            raise UserError(f"model.zbl_power must be at least 1, got {config.zbl_power}")
        self.interaction = _build_backbone(config, numbers)
        self.composition = _build_composition(config, numbers)
        self.structure = StructureStream(config.structure, config.cutoff) if config.structure else None
        width = sum(self.stream_widths().values())
        self.head = EnergyHead(width, config.head_hidden, config.readout, config.head_skip)
        self.direct = _build_direct(config, width, self.interaction)
        self.properties = property_heads(config, width, self.interaction)
        self.zbl = ZBL(FORMS[config.zbl_form], config.zbl_power) if config.zbl else None
        self.overlay = Overlay(config.zbl_overlay, config.cutoff) if config.zbl_overlay else None
        self.register_buffer("references", torch.zeros(N_NUMBERS, dtype=torch.float64))
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))
        n = self.head.n_features
        self.register_buffer("spread", torch.zeros(n, n, dtype=torch.float64) if config.uncertainty else None)

    references: Tensor
    """(119,) float64, eV. Energy of an atom of each element before the network's own."""
    scale: Tensor
    """() float64, eV. What one unit of the network's output means."""
    spread: Tensor | None
    """(F, F) float64, eV, F features of the last layer. A matrix R with R Rᵀ the covariance of its weights."""

    def embeddings(self, graph: Graph) -> dict[str, Tensor]:
        """Features of each stream by name, (N, width of the stream), in the order in which they are concatenated.

        A stream that is left out is absent.
        """
        return self._embeddings(graph)[0]

    def _embeddings(self, graph: Graph) -> tuple[dict[str, Tensor], Tensor | None]:
        """Those, and the harmonics for direct heads that read some."""
        # Rounded once for all streams: their derivatives then meet in one tensor of the network's precision.
        graph = graph._replace(edge_vector=graph.edge_vector.to(self.head.dtype))
        streams = {"composition": self.composition, "structure": self.structure}
        found = {name: stream(graph) for name, stream in streams.items() if stream is not None}
        found["interaction"], harmonics = self.interaction.with_harmonics(graph)
        return found, harmonics

    def forward(self, graph: Graph) -> Tensor:
        """Energies of the atoms, (N,) float64, eV."""
        return self._energies(self.embeddings(graph), graph)

    def directly(self, graph: Graph) -> tuple[Tensor, Direct]:
        """Energies (N,) and what direct heads read off, without any derivative but that of the repulsion."""
        embeddings, harmonics = self._embeddings(graph)
        return self._energies(embeddings, graph), self._direct(embeddings, harmonics, graph)

    def properties_of(self, graph: Graph) -> dict[str, Tensor]:
        """Each property by name, (G, K) or (N, K) float64 with K components, in the units of the data; log odds of 'binary'."""
        return self._properties(*self._embeddings(graph), graph)

    def with_properties(self, graph: Graph) -> tuple[Tensor, dict[str, Tensor]]:
        """Energies (N,) and, from the same features, what :meth:`properties_of` gives."""
        embeddings, harmonics = self._embeddings(graph)
        return self._energies(embeddings, graph), self._properties(embeddings, harmonics, graph)

    def _properties(self, embeddings: dict[str, Tensor], harmonics: Tensor | None, graph: Graph) -> dict[str, Tensor]:
        assert self.properties is not None
        found: dict[str, Tensor] = self.properties(list(embeddings.values()), harmonics, graph)
        return found

    def _direct(self, embeddings: dict[str, Tensor], harmonics: Tensor | None, graph: Graph) -> Direct:
        assert self.direct is not None
        found: Direct = self.direct(list(embeddings.values()), harmonics, graph)
        if self.zbl is None:
            return found
        _, edge_forces = derivatives.evaluate(self.repulsion, graph)
        virial = derivatives.virial(edge_forces, graph)
        volume = torch.linalg.det(graph.cell).abs()[:, None, None]
        stress = torch.where(volume > 0, virial / volume, torch.zeros_like(virial))
        return Direct(found.forces + derivatives.forces(edge_forces, graph), found.stress + stress)

    def run(self, graph: Graph, extras: Sequence[str] = ()) -> tuple[Tensor, ...]:
        """Energies (N,) and edge forces (E, 3) as in derivatives.py, then those of :meth:`extras` that are named."""
        kept: dict[str, Tensor] = {}

        def energies_of(graph: Graph) -> Tensor:
            embeddings, harmonics = self._embeddings(graph)
            features = {name: t.detach() for name, t in embeddings.items()}
            kept.update((name, t) for name, t in features.items() if name in extras)
            if FORCES in extras:
                with torch.no_grad():
                    kept[FORCES], kept[STRESS] = self._direct(features, harmonics, graph)
            if UNCERTAINTY in extras:
                kept[UNCERTAINTY] = self._uncertainty(list(features.values()), graph)
            return self._energies(embeddings, graph)

        energies, edge_forces = derivatives.evaluate(energies_of, graph)
        return energies, edge_forces, *(kept[name] for name in extras)

    def _energies(self, embeddings: dict[str, Tensor], graph: Graph) -> Tensor:
        output = self.head(list(embeddings.values()), graph)
        energies: Tensor = self.scale * output.to(torch.float64)
        if self.overlay is not None:
            energies = self.overlay(energies, graph)
        energies = energies + self.references[graph.numbers]
        if self.zbl is None:
            return energies
        return energies + self.repulsion(graph)

    def repulsion(self, graph: Graph) -> Tensor:
        """Energies that ``zbl`` adds to the atoms, (N,) float64 eV; with 'orb-mean' the mean over atoms to the structure."""
        assert self.zbl is not None
        energies: Tensor = self.zbl(graph)
        if self.config.zbl_form == "mace":
            return self.scale * energies
        if self.config.zbl_form == "orb-mean":
            return energies / count_owned(graph).index_select(0, graph.batch)
        return energies

    @torch.no_grad()
    def _uncertainty(self, streams: list[Tensor], graph: Graph) -> Tensor:
        """σ_i = |Rᵀ φ_i|, (N,) float64 eV, of the network's part of the energy; see training/uncertainty.py."""
        assert self.spread is not None
        sigma = (self.head.features(streams).to(torch.float64) @ self.spread).square().sum(1).sqrt()
        return torch.where(graph.owned, sigma, torch.zeros_like(sigma))

    def extras(self, embeddings: bool = True) -> tuple[str, ...]:
        """What :meth:`run` can return besides energies and edge forces; the streams' features only where wanted."""
        direct = () if self.direct is None else (FORCES, STRESS)
        return (*(self.stream_names() if embeddings else ()), *((UNCERTAINTY,) if self.spread is not None else ()), *direct)

    def stream_names(self) -> tuple[str, ...]:
        """The streams there are, in the order of :meth:`embeddings`."""
        return tuple(self.stream_widths())

    def stream_widths(self) -> dict[str, int]:
        """Features of each stream, in the order of :meth:`embeddings`; one that is left out is absent."""
        streams = {"composition": self.composition, "structure": self.structure, "interaction": self.interaction}
        return {name: int(stream.width) for name, stream in streams.items() if stream is not None}

    def admit_masked(self) -> None:
        """Let masked atoms, of number 0, be an element of their own; for pretraining."""
        if isinstance(self.composition, CompositionStream):
            self.composition.admit_masked()

    def set_network_dtype(self, dtype: torch.dtype) -> None:
        """Give the network a precision, in place; all that has units stays float64."""
        references, scale, spread = self.references, self.scale, self.spread
        properties = self.properties
        units = None if properties is None else (properties.mean, properties.spread)
        self.to(dtype)
        self.references, self.scale, self.spread = references, scale, spread
        if properties is not None and units is not None:
            properties.mean, properties.spread = units

    def facts(self) -> Facts:
        """What a host must know; composition is 'live' where there is a composition stream that is no table yet."""
        structure, composition = self.config.structure, self.config.composition
        layers = structure.layers if structure is not None else 0
        # The density is one hop, each message-passing layer another.
        reach = (layers + 1) * self.config.cutoff if structure is not None else 0.0
        return Facts(
            elements=self.config.elements,
            cutoff=self.config.cutoff,
            n_exchanges=self.interaction.n_exchanges + layers,
            receptive_field=max(reach, self.interaction.receptive_field),
            bidirectional=self.interaction.bidirectional,
            smooth=self.interaction.smooth and self.config.max_neighbours is None,
            conservative=self.interaction.conservative and self.direct is None,
            separable=self.interaction.separable and self.config.is_sum() and self.direct is None,
            max_neighbours=self.config.max_neighbours,
            zbl_overlay=self.config.zbl_overlay,
            precision=str(self.head.dtype).removeprefix("torch."),
            composition="none" if composition is None else "frozen" if composition.table else "live",
        )


def _build_composition(config: ModelConfig, numbers: list[int]) -> CompositionStream | CompositionTable | None:
    if config.composition is None:
        return None
    kind = CompositionTable if config.composition.table else CompositionStream
    return kind(config.composition, numbers)


def _build_direct(config: ModelConfig, width: int, backbone: Backbone) -> DirectHeads | None:
    if not config.direct:
        return None
    if backbone.directions == "none":
        raise UserError(
            f"model.direct: {config.backbone.name} gives nothing that turns with the structure, vectors and tensors, so that "
            "no forces and stress can be read off its features; set it to false"
        )
    channels = backbone.width if backbone.directions == "harmonics" else 0
    return DirectHeads(width, config.head_hidden, channels, config.direct_stress)


def _build_backbone(config: ModelConfig, numbers: list[int]) -> Backbone:
    name = config.backbone.name
    if name not in BACKBONES:
        raise UserError(f"model.backbone.name: unknown backbone '{name}'; known: {', '.join(BACKBONES)}")
    cls = backbone_class(name)
    return cls(read(cls.Config, config.backbone.options, "model.backbone.options"), config.cutoff, numbers)
