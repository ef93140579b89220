"""Whose code evaluates a model's products: ours, or a library's, which is compared with ours each time before it is used.

That is of the eager form alone. Compiled forms have ours inside, joined with what stands around them.
"""

from __future__ import annotations

import os

import torch

from triforces_deploy import exchange
from triforces_deploy.eager import arbitrary_graph
from triforces_deploy.errors import UserError
from triforces_deploy.graph import Graph
from triforces_deploy.model import Model
from triforces_deploy.nn.cue import UnavailableError, has_kernels, label, with_cuequivariance
from triforces_deploy.precision import PRECISIONS, multiplying

VARIABLE = "TFDEPLOY_KERNELS"
"""Environment variable, one of :data:`CHOICES`; without it 'auto' on a GPU and 'own' on the CPU."""
OWN, NAMED, AUTO = CHOICES = "own", "cuequivariance", "auto"
"""Ours; the library, without kernels where it has none for the device, or an error; its kernels where they work and agree."""
COMPARED = 128, 1024
"""Atoms and edges of the graph on which the two are compared; all elements are among so many atoms."""
TINY = torch.finfo(torch.float64).tiny
"""What a size is at least, so that nothing is divided by zero."""


def named() -> str | None:
    """What the variable says, one of :data:`CHOICES`; None without it, UserError where it means nothing."""
    choice = os.environ.get(VARIABLE)
    if choice not in (None, *CHOICES):
        raise UserError(f"{VARIABLE}={choice}: expected {', '.join(CHOICES)}")
    return choice


def wanted(device: torch.device) -> str:
    """What a model on a device is to have, one of :data:`CHOICES`."""
    return named() or (OWN if device.type == "cpu" else AUTO)


def insisted() -> bool:
    """Whether the user names the library, which only the eager form can use."""
    return named() == NAMED


def of_compiled(backend: str) -> str:
    """What to say of a compiled form."""
    line = f"own, compiled into the {backend} form"
    return f"{line}; {VARIABLE}={NAMED} acts on the eager form alone" if insisted() else line


def equipped(model: Model, precision: str) -> tuple[Model, str]:
    """The model with the kernels that are wanted on its device, and the words that name them and say why.

    Args:
        model: ready to be evaluated.
        precision: a key of ``precision.PRECISIONS``, whose limit for two back ends holds.

    Raises:
        UserError: the library is asked for by name and cannot be used, or gives other numbers.
    """
    device = model.references.device
    choice = wanted(device)
    if choice == OWN:
        return model, f"own ({VARIABLE}={OWN})" if named() else OWN
    try:
        if choice == AUTO and not has_kernels(device):
            raise UnavailableError(f"there are no others for {device.type}")
        found, deviation = _verified(model, precision, device)
    except UnavailableError as error:
        if choice == NAMED:
            raise UserError(f"{VARIABLE}={NAMED}: {error}; set it to own, or mend that") from error
        return model, f"own ({error})"
    plain = "" if has_kernels(device) else " in plain PyTorch"
    return found, f"{label()}{plain} (verified, {deviation:.0e})"


def _verified(model: Model, precision: str, device: torch.device) -> tuple[Model, float]:
    """The model with the library's kernels, and by how much its numbers differ from ours."""
    try:
        found = with_cuequivariance(model, device)
        deviation = _deviation(found, model, precision, device)
    except UnavailableError:
        raise
    except Exception as error:  # whatever a library does wrong is no reason to stop
        raise UnavailableError(f"{label()} failed: {type(error).__name__}: {error}".splitlines()[0]) from error
    allowed = PRECISIONS[precision].parity
    if not deviation <= allowed:
        raise UnavailableError(f"{label()} differs from ours by {deviation:.0e} relative, {allowed:.0e} is allowed")
    return found, deviation


def _deviation(candidate: Model, own: Model, precision: str, device: torch.device) -> float:
    """Largest, over the largest value, of the energies without their references and of the edge forces; NaN if there is one."""
    graph = Graph(*(t.to(device) for t in arbitrary_graph(own, *COMPARED)))
    # Other ranks, with which an evaluation would exchange features, do not take part.
    with multiplying(precision, casting=True), exchange.using(exchange.Recorder()):
        found, expected = candidate.run(graph), own.run(graph)
    sizes = expected[0] - own.references[graph.numbers], expected[1]
    triples = zip(found, expected, sizes, strict=True)
    return float(torch.stack([(a - b).abs().max() / size.abs().max().clamp(min=TINY) for a, b, size in triples]).max())
