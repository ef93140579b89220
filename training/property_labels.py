"""Labels of properties: where they are, what they are counted in, and the loss."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from triforces_deploy.errors import UserError
from triforces_deploy.properties import isotropic
from triforces_deploy.property_config import PropertyConfig
from triforces_deploy.training.classification import base_log_odds, cross_entropy
from triforces_deploy.training.objective import penalty
from triforces_deploy.training.recipe import LossConfig
from triforces_deploy.training.structures import Sample


def property_loss(wanted: PropertyConfig, found: Tensor, sample: Sample, scale: float, config: LossConfig) -> Tensor:
    """ℓ of (R, K) predictions in units of the spread, () ; the mean over what is labelled, 0 where nothing is."""
    label = sample.targets[wanted.name]
    # Labels are chosen before the penalty: a NaN that is masked after it would still poison the gradient.
    known = labelled(label)
    if wanted.kind == "binary":
        values = cross_entropy(found[known], label[known])
        return values.sum() / max(1, len(values))
    error = ((found - label) / (per(wanted, sample)[:, None] * scale))[known]
    values = penalty(error, config.properties_form, config.huber_delta)
    return values.sum() / max(1, len(values))


def mean_and_spread(wanted: PropertyConfig, samples: Iterable[Sample]) -> tuple[float, float]:
    """Mean of what no rotation changes, and root mean square of the components around it; of a 'sum' per atom.

    Of a 'binary' property they are the log odds that it has on the whole, and 1.

    Raises:
        UserError: no labels to train on, or labels that are not of the kind.
    """
    rows = [(s.targets[wanted.name] / per(wanted, s)[:, None])[labelled(s.targets[wanted.name])] for s in samples]
    labels = torch.cat(rows)
    if len(labels) == 0:
        raise UserError(f"no structure to train on has the property '{wanted.name}'; add some, or leave it out")
    if wanted.kind == "binary":
        if not bool(((labels == 0) | (labels == 1)).all()):
            raise UserError(
                f"the property '{wanted.name}' is not 1 or 0 everywhere; expected so of kind binary, else say scalar"
            )
        return base_log_odds(labels), 1.0
    if wanted.kind == "tensor" and not torch.allclose(labels, labels.view(-1, 3, 3).mT.flatten(1), rtol=1e-3, atol=1e-6):
        raise UserError(f"the property '{wanted.name}' is no symmetric tensor; make it symmetric, or leave it out")
    unit = isotropic(wanted).to(labels)
    mean = (labels @ unit).mean() / unit.sum().clamp(min=1.0)
    spread = (labels - mean * unit).square().mean().sqrt()
    return float(mean), float(spread) if float(spread) > 1e-12 * (1 + abs(float(mean))) else 1.0


def per(wanted: PropertyConfig, sample: Sample) -> Tensor:
    """What labels are divided by, (R,): the number of atoms where a structure's is their sum."""
    rows = torch.ones(len(sample.targets[wanted.name]), dtype=torch.float64, device=sample.energy.device)
    return sample.graph.composition.sum(dim=1).to(rows) if wanted.of == "structure" and wanted.pooling == "sum" else rows


def labelled(labels: Tensor) -> Tensor:
    """(R,) whether all components are there."""
    return labels.isfinite().all(dim=1)
