"""The torch.export program of the captured graph, with dynamic numbers of atoms, edges and structures."""

from __future__ import annotations

import torch
from torch.export import ExportedProgram

from triforces_deploy.payloads.base import flat_inputs

from .base import Captured


def program(captured: Captured) -> ExportedProgram:
    """The flat graph as torch.export sees it; any size from zero up."""
    n_atoms, n_edges, n_structures = (torch.export.Dim(name, min=0) for name in ("N", "E", "G"))
    shapes = ({0: n_atoms}, {1: n_edges}, {0: n_edges}, {0: n_atoms}, {0: n_atoms}, {0: n_structures})
    return torch.export.export(captured.module, flat_inputs(captured.example), dynamic_shapes=shapes)
