"""An imported Orb-v3 model against orb-models, where that is installed."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress

from triforces_deploy.artifact import Parity
from triforces_deploy.backbones.orb_v3 import NORM_EPS, OrbV3Config
from triforces_deploy.config import read
from triforces_deploy.errors import UserError

from .comparing import Results, compared, few_structures, results_of
from .foreign import read_weights
from .imported import Imported
from .orb_table import CUTOFF, WHAT

PACKAGE = "orb-models"
TOLERANCE = 1e-6
"""Relative. Models trained in float32 have constants rounded to it there and exact ones here: about 1e-7."""
ALL = 10_000
"""Neighbours, where none are left out."""


def against_orb(path: Path, made: Imported) -> Parity:
    """Energies per atom, forces and stress in float64, on a crystal, a skewed one with two elements, and a molecule.

    Raises:
        UserError: orb-models is not here, or the numbers differ.
    """
    try:
        from orb_models.forcefield import pretrained
        from orb_models.forcefield.atomic_system import SystemConfig
        from orb_models.forcefield.calculator import ORBCalculator
    except ImportError as error:
        raise UserError(
            f"--verify needs {PACKAGE} in this environment: pip install {PACKAGE}, or leave --verify out"
        ) from error
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # already while it is built: its constants are then exact
    try:
        config = made.model.config
        build = pretrained.orb_v3_direct_architecture if config.direct else pretrained.orb_v3_conservative_architecture
        public = build(**_options(made), device="cpu").eval()
        public.load_state_dict(read_weights(path, WHAT))
        for module in public.modules():
            if isinstance(module, torch.nn.RMSNorm):
                module.eps = NORM_EPS  # what it is in float32; the default changes with the precision
        graph = SystemConfig(radius=CUTOFF, max_num_neighbors=config.max_neighbours or ALL)
        calculator = ORBCalculator(public, system_config=graph, device="cpu")
        structures = few_structures(config.elements)
        pairs = [(results_of(made, atoms), _theirs(calculator, atoms, made)) for atoms in structures]
    finally:
        torch.set_default_dtype(before)
    return compared(path, pairs, f"{PACKAGE} {importlib.metadata.version(PACKAGE)}", TOLERANCE)


def _options(made: Imported) -> dict[str, Any]:
    config = made.model.config
    ours = read(OrbV3Config, config.backbone.options, "options")
    return {
        "latent_dim": ours.latent,
        "base_mlp_hidden_dim": ours.mlp_hidden,
        "base_mlp_depth": ours.mlp_depth,
        "head_mlp_hidden_dim": config.head_hidden[0],
        "head_mlp_depth": len(config.head_hidden),
        "num_message_passing_steps": ours.n_layers,
        "has_charge_spin_cond": ours.system != "none",
        "has_stress": config.direct_stress,
    }


def _theirs(calculator: Any, atoms: Atoms, made: Imported) -> Results:
    atoms = atoms.copy()
    atoms.info = {key: made.said[key] for key in ("charge", "spin") if key in made.said}
    calculator.calculate(atoms)
    found = calculator.results
    results: Results = {"energy": np.array(float(found["energy"]) / len(atoms)), "forces": found["forces"]}
    return results | ({"stress": voigt_6_to_full_3x3_stress(found["stress"])} if atoms.pbc.all() and "stress" in found else {})
