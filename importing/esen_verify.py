"""An imported eSEN model against fairchem-core, where that is installed."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import torch
from ase import Atoms

from triforces_deploy.artifact import Parity
from triforces_deploy.direct import without_torque
from triforces_deploy.errors import UserError

from .comparing import Results, compared, few_structures, results_of
from .esen_direct import scales_of
from .imported import Imported

PACKAGE = "fairchem-core"
TOLERANCE = 1e-6
"""Relative. Constants that are float32 in a model trained in it are exact here: about 1e-7."""
SETTINGS = {"otf_graph": True, "always_use_pbc": False, "regress_stress": True, "max_neighbors": 10_000}
"""The public model builds its graph as ours is built."""


def against_esen(path: Path, made: Imported) -> Parity:
    """Energies per atom, forces and stress in float64, on a crystal, a skewed one with two elements, and a molecule.

    Raises:
        UserError: fairchem-core is not here, or the numbers differ.
    """
    try:
        from fairchem.core.datasets.atomic_data import AtomicData
        from fairchem.core.models.uma.escn_md import Linear_Force_Head, MLP_Stress_Head
        from fairchem.core.models.uma.outputs import compute_energy, compute_forces_and_stress
        from fairchem.core.units.mlip_unit.utils import load_inference_model
    except ImportError as error:
        raise UserError(
            f"--verify needs {PACKAGE} in this environment: pip install {PACKAGE}, or leave --verify out"
        ) from error
    config, dataset = made.model.config, str(made.said["dataset"])
    loaded, stored = load_inference_model(str(path), {"backbone": SETTINGS}, use_ema=True)
    public = loaded.module.double().eval()
    (readout,) = (module for name, module in public.named_modules() if name.endswith("energy_block"))
    direct = {
        kind: module
        for kind, head in (("forces", Linear_Force_Head), ("stress", MLP_Stress_Head))
        for module in public.modules()
        if isinstance(module, head)
    }
    scales = dict.fromkeys(("forces", "stress"), float(made.model.scale))
    if config.direct:
        scales = scales_of(stored.tasks_config, {}, config.direct_stress, dataset, str(path))

    def theirs(atoms: Atoms) -> Results:
        data: Any = AtomicData.from_ase(atoms, target_dtype=torch.float64)
        data.charge, data.spin = (torch.tensor([made.said[key]]) for key in ("charge", "spin"))
        data.dataset = [dataset]
        features = public.backbone(data)
        energy, part = compute_energy(features, readout, data["batch"], 1)
        references = made.model.references[torch.as_tensor(atoms.numbers)]
        results = {"energy": (energy.detach()[0] * float(made.model.scale) + references.sum()) / len(atoms)}
        if config.direct:
            found = {kind: head(data, features)[kind] for kind, head in direct.items()}
            if not atoms.cell.any():  # as our calculator does with all models of this kind
                found["forces"] = without_torque(found["forces"], data["pos"])
        else:
            forces, stress = compute_forces_and_stress(part, data["pos"], data["cell"], data["batch"], training=False)
            found = {"forces": forces, "stress": stress}
        results["forces"] = found["forces"] * scales["forces"]
        if atoms.pbc.all() and "stress" in found:
            results["stress"] = found["stress"].reshape(3, 3) * scales["stress"]
        return {key: tensor.detach().numpy() for key, tensor in results.items()}

    pairs = [(results_of(made, atoms), theirs(atoms)) for atoms in few_structures(config.elements)]
    return compared(path, pairs, f"{PACKAGE} {importlib.metadata.version(PACKAGE)}", TOLERANCE)
