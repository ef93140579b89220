"""orb-models as a contender of benchmarks/race.py: Orb-v3 conservative, random weights, 120 neighbours, eager or compiled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from orb_models.forcefield.atomic_system import SystemConfig, ase_atoms_to_atom_graphs
from orb_models.forcefield.pretrained import orb_v3_conservative_architecture
from race_common import Evaluate, serve

SYSTEM = SystemConfig(radius=6.0, max_num_neighbors=120)


def make(_folder: Path) -> None:
    """Nothing to share: their energy head takes the mean over atoms, which ours does not."""


def prepare(_folder: Path, precision: str, atoms: Atoms, form: str) -> Evaluate:
    dtype = getattr(torch, precision)
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    model = orb_v3_conservative_architecture(device="cpu", system_config=SYSTEM).to(dtype).eval()
    model.requires_grad_(False)
    if form == "compile":
        model.compile(mode="default", dynamic=True)  # as the package does when it loads public weights
    graph = ase_atoms_to_atom_graphs(atoms, SYSTEM, device=torch.device("cpu"), output_dtype=dtype)

    def evaluate() -> tuple[float, np.ndarray]:
        result = model.predict(graph)
        return float(result["energy"]), result["grad_forces"].detach().double().numpy()

    return evaluate


if __name__ == "__main__":
    serve(make, prepare)
