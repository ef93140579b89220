"""From a file to what is certified: its forms, its eager reference, its structures."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path

import torch
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii

from triforces_deploy.artifact import Artifact, potential, rebuild
from triforces_deploy.config import ModelConfig
from triforces_deploy.errors import UserError
from triforces_deploy.onnx_positions import PositionsModel
from triforces_deploy.potential import Potential

from ..exporting import eager_reference
from ..verify import known_tolerance
from ..verify_positions import open_form
from .base import Subject
from .structures import crystal, structures


def open_subject(
    artifact: Artifact, path: Path, checkpoint: Path | None = None, own: Mapping[str, Atoms] | None = None
) -> Subject:
    """Open every form of a file.

    Args:
        artifact: its content.
        path: where it lies.
        checkpoint: what it was made from; without it the reference is the eager model in the file.
        own: structures to compare on, beside our own.

    Raises:
        UserError: a checkpoint that cannot be read.
    """
    facts = artifact.metadata.facts
    forms, positions, missing = _forms(artifact, str(path))
    eager = potential(artifact, str(path), "eager")
    if checkpoint is not None:
        forms["eager"] = eager
    elements = tuple(facts.reference) or facts.elements
    perfect = crystal(elements)
    return Subject(
        potential=potential(artifact, str(path)),
        forms=forms,
        reference=eager if checkpoint is None else eager_reference(checkpoint, facts, facts.precision, artifact.weights),
        crystal=perfect,
        structures=structures(elements, perfect, own or {}),
        positions=positions,
        inner_cutoffs=inner_cutoffs(artifact.metadata.config),
        exact=None if facts.precision == "float64" else _exact(artifact, checkpoint),
        missing=missing,
        moving=next((name for name, atoms in (own or {}).items() if _can_run(atoms)), "defect"),
        path=path,
        reference_name="eager" if checkpoint is None else checkpoint.name,
        tolerance_found=known_tolerance(artifact.metadata),
    )


def inner_cutoffs(config: ModelConfig) -> tuple[float, ...]:
    """Å. The structure stream's shorter envelopes, and where the repulsion of each pair of elements ends."""
    radii: list[float] = []
    if config.structure is not None:
        radii += [scale * config.cutoff for scale in config.structure.scales]
    if config.zbl:
        own = [float(covalent_radii[atomic_numbers[s]]) for s in config.elements]
        radii += [a + b for a, b in itertools.combinations_with_replacement(own, 2)]
    radii += [r for switch in config.zbl_overlay for r in (switch.inner, switch.outer)]
    return tuple(sorted({round(r, 6) for r in radii if r < config.cutoff}))


def _can_run(atoms: Atoms) -> bool:
    """Whether a structure of the user's is one to run at constant energy: a crystal, small enough for the time there is."""
    return bool(atoms.pbc.all()) and 2 <= len(atoms) <= LARGEST


LARGEST = 256
"""Atoms of the structure that is run."""


def _forms(artifact: Artifact, name: str) -> tuple[dict[str, Potential], PositionsModel | None, dict[str, str]]:
    """What runs here on graphs, what runs on positions, and why the rest does not."""
    forms: dict[str, Potential] = {}
    positions, missing = None, {}
    for backend in artifact.payloads:
        try:
            form = open_form(artifact, name, backend)
        except UserError as error:
            missing[backend] = str(error)
            continue
        if isinstance(form, PositionsModel):
            positions = form
        else:
            forms[backend] = form
    return forms, positions, missing


def _exact(artifact: Artifact, checkpoint: Path | None) -> Potential:
    facts = dataclasses.replace(artifact.metadata.facts, precision="float64")
    if checkpoint is not None:
        return eager_reference(checkpoint, facts, "float64", artifact.weights)
    model = rebuild(artifact)
    model.set_network_dtype(torch.float64)
    return Potential(facts, model.run, "eager")
