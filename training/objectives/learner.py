"""A model with the heads of its objective: what pretraining trains, and of which only the model is kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from triforces_deploy.model import Model
from triforces_deploy.training.objectives.barlow import Barlow
from triforces_deploy.training.objectives.base import Seen, Term, Views
from triforces_deploy.training.objectives.config import ObjectiveConfig
from triforces_deploy.training.objectives.denoising import Denoising
from triforces_deploy.training.objectives.lejepa import LeJEPA
from triforces_deploy.training.objectives.masked import Masked
from triforces_deploy.training.objectives.simsiam import SimSiam


class Learner(nn.Module):
    """The terms' losses of a model's features.

    The energy head learns only where a term reads energies; otherwise it is left as it is, without a gradient.

    Args:
        model: is given the row for masked atoms.
        config: which terms.
    """

    def __init__(self, model: Model, config: ObjectiveConfig) -> None:
        super().__init__()
        self.model = model
        model.admit_masked()
        widths = model.stream_widths()
        made: dict[str, Term] = {}
        if config.denoise is not None:
            made["denoise"] = Denoising(config.denoise, widths, model.config.cutoff)
        if config.masked is not None:
            made["masked"] = Masked(config.masked, widths, model.config.numbers())
        if config.lejepa is not None:
            made["lejepa"] = LeJEPA(config.lejepa, widths)
        if config.barlow is not None:
            made["barlow"] = Barlow(config.barlow, widths)
        if config.simsiam is not None:
            made["simsiam"] = SimSiam(config.simsiam, widths)
        self.terms = nn.ModuleDict({name: term.to(model.head.dtype) for name, term in made.items()})
        self.reads_energies = any(term.reads_energies for term in made.values())
        model.head.requires_grad_(self.reads_energies)

    def forward(self, views: Views) -> dict[str, Tensor]:
        """Unweighted losses, () each, by the names of the terms."""
        with torch.set_grad_enabled(torch.is_grad_enabled() or self.reads_energies):
            seen = self.look(views)
            # Sums over a batch would not survive a precision of three digits; the model alone may multiply in bfloat16.
            with torch.autocast(views.numbers.device.type, enabled=False):
                return {name: term(seen) for name, term in self.terms.items()}

    def look(self, views: Views) -> Seen:
        """The model's features of the views."""
        graph = views.graph
        if self.reads_energies:
            graph = graph._replace(edge_vector=graph.edge_vector.detach().requires_grad_(True))
        streams = self.model.embeddings(graph)
        energies = self.model.head(list(streams.values()), graph).to(torch.float64) if self.reads_energies else None
        return Seen(views, graph, {name: t.to(self.model.head.dtype) for name, t in streams.items()}, energies)


def counts(config: ObjectiveConfig, views: Views) -> dict[str, float]:
    """How many things each term's loss is the mean of in this process; 1 where it is the same number on all of them."""
    means = {"denoise": float(views.noise.shape[0]), "masked": float((views.graph.numbers == 0).sum())}
    return {name: means.get(name, 1.0) for name in config.terms()}
