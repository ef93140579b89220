"""nequip as a contender of benchmarks/race.py: its presets S and M, random weights, 5 Å; eager, TorchScript, AOTInductor."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from nequip.data import AtomicDataDict, from_ase
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
from nequip.model import PresetNequIPGNNModel
from nequip.model.inference_models.torchscript import load_torchscript_model, save_torchscript_model
from nequip.nn.compile import DictInputOutputWrapper
from nequip.scripts._compile_utils import ASE_OUTPUTS, PAIR_NEQUIP_INPUTS, single_frame_data_settings
from nequip.utils.aot import aot_export_model
from nequip.utils.global_state import set_global_state
from race_common import Evaluate, serve, silicon

CUTOFF = 5.0


def prepare(_folder: Path, precision: str, atoms: Atoms, form: str) -> Evaluate:
    set_global_state()
    preset, form = form.split("-")
    model = PresetNequIPGNNModel(
        preset=preset, seed=0, model_dtype=precision, r_max=CUTOFF, type_names=["Si"], avg_num_neighbors=28.0
    ).eval()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        if form == "torchscript":
            path = place / "model.nequip.pth"
            save_torchscript_model(model, dict(model.metadata), str(path), "cpu")
            model, _ = load_torchscript_model(str(path))
        if form == "aoti":
            model = compiled(model, place)
    graph = on_graph(atoms)

    def evaluate() -> tuple[float, np.ndarray]:
        found = model(dict(graph))
        energy, forces = found[AtomicDataDict.TOTAL_ENERGY_KEY], found[AtomicDataDict.FORCE_KEY]
        return float(energy.detach().sum()), forces.detach().double().numpy()

    return evaluate


def on_graph(atoms: Atoms) -> dict[str, torch.Tensor]:
    """What their calculator gives to a model."""
    data = NeighborListTransform(r_max=CUTOFF)(from_ase(atoms))
    return dict(single_frame_data_settings(ChemicalSpeciesToAtomTypeMapper(["Si"])(data)))


def compiled(model: torch.nn.Module, place: Path) -> torch.nn.Module:
    """As `nequip-compile --mode aotinductor --target ase` does, for any number of atoms and edges."""
    sizes = {"graph": torch.export.Dim.STATIC}
    sizes |= {kind: torch.export.Dim(f"num_{kind}s", min=2) for kind in ("node", "edge")}
    out = str(place / "model.nequip.pt2")
    example = on_graph(silicon(64))
    aot_export_model(model, "cpu", PAIR_NEQUIP_INPUTS, ASE_OUTPUTS, example, sizes, out, {})
    return DictInputOutputWrapper(torch._inductor.aoti_load_package(out), PAIR_NEQUIP_INPUTS, ASE_OUTPUTS)


def make(_folder: Path) -> None:
    """Nothing to share."""


if __name__ == "__main__":
    serve(make, prepare)
