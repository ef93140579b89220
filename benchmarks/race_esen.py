"""fairchem-core as a contender of benchmarks/race.py: eSEN-sm, random weights, its forms in plain torch."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import hydra
import numpy as np
import torch
from ase import Atoms
from ase.neighborlist import neighbor_list
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.units.mlip_unit.api.inference import MLIPInferenceCheckpoint
from fairchem.core.units.mlip_unit.utils import load_inference_model
from race_common import Evaluate, serve

CUTOFF = 6.0
CONFIG = {
    "_target_": "fairchem.core.models.base.HydraModel",
    "backbone": {
        "model": "fairchem.core.models.uma.escn_md.eSCNMDBackbone",
        "num_layers": 4,
        "num_distance_basis": 64,
        "ff_type": "spectral",
        "chg_spin_emb_type": "rand_emb",
        "use_dataset_embedding": False,
        "cutoff": CUTOFF,
        "otf_graph": False,
        "direct_forces": False,
        "regress_stress": True,
    },
    "heads": {"energy": {"module": "fairchem.core.models.uma.escn_md.MLP_EFS_Head", "wrap_property": False}},
}
MODES = {"eager": "general", "checkpointed": "general", "fast": "umas_fast_pytorch"}
"""Form → their name of it. 'checkpointed' computes edges again in pieces, as their settings for batches do; 'fast' joins the
matrices of each order, and the radial functions of all layers."""


def make(folder: Path) -> None:
    torch.manual_seed(0)
    model = hydra.utils.instantiate(CONFIG)
    averaged = torch.optim.swa_utils.AveragedModel(model).state_dict()
    tasks = [{"name": "energy", "property": "energy", "datasets": ["omat"], "normalizer": {"mean": 0.0, "rmsd": 1.0}}]
    torch.save(MLIPInferenceCheckpoint(CONFIG, model.state_dict(), averaged, tasks), folder / "public.model")


def prepare(folder: Path, precision: str, atoms: Atoms, form: str) -> Evaluate:
    dtype = getattr(torch, precision)
    checkpointing = form == "checkpointed"
    settings = {"backbone": {"execution_mode": MODES[form], "activation_checkpointing": checkpointing}}
    loaded, _ = load_inference_model(str(folder / "public.model"), settings, use_ema=True)
    model = loaded.module.to(dtype).eval()
    model.requires_grad_(False)  # as the package's own calculator does
    (head,) = model.output_heads.values()
    model.backbone.prepare_for_inference(None, SimpleNamespace(activation_checkpointing=checkpointing))

    def evaluate() -> tuple[float, np.ndarray]:
        data = graph.clone()
        result = head(data, model.backbone(data))
        return float(result["energy"].detach()), result["forces"].detach().double().numpy()

    atoms.wrap()  # as the next line does, which does not say so to the shifts
    graph = AtomicData.from_ase(atoms, target_dtype=dtype)
    graph.charge, graph.spin, graph.dataset = torch.tensor([0]), torch.tensor([0]), ["omat"]
    centre, neighbour, shifts = neighbor_list("ijS", atoms, CUTOFF)
    graph.edge_index = torch.from_numpy(np.stack([neighbour, centre]))
    graph.cell_offsets, graph.nedges = torch.from_numpy(shifts).to(dtype), torch.tensor([len(centre)])
    return evaluate


if __name__ == "__main__":
    serve(make, prepare)
