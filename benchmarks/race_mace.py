"""mace-torch as a contender of benchmarks/race.py: its medium size, random weights; eager, TorchScript, torch.compile."""

from __future__ import annotations

from pathlib import Path

import mace  # noqa: F401 - before e3nn, which otherwise cannot read its own tables with this torch
import numpy as np
import torch
from ase import Atoms
from e3nn import o3
from e3nn.util import jit
from mace import data, modules
from mace.tools import AtomicNumberTable, torch_geometric
from mace.tools.compile import prepare as simplified
from mace.tools.scripts_utils import extract_model
from race_common import Evaluate, serve

NUMBERS = [14]
CUTOFF = 5.0


def make(folder: Path) -> None:
    """128x0e + 128x1o, harmonics to degree 3, order 3, two layers: the medium models; for one element."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    model = modules.ScaleShiftMACE(
        r_max=CUTOFF,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
        num_interactions=2,
        num_elements=len(NUMBERS),
        hidden_irreps=o3.Irreps("128x0e + 128x1o"),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.zeros(len(NUMBERS)),
        avg_num_neighbors=28.0,
        atomic_numbers=NUMBERS,
        correlation=3,
        gate=torch.nn.functional.silu,
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )
    torch.save(model, folder / "public.model")


def prepare(form: str, folder: Path, precision: str, atoms: Atoms) -> Evaluate:
    dtype = getattr(torch, precision)
    torch.set_default_dtype(dtype)
    model = torch.load(folder / "public.model", weights_only=False).to(dtype).eval()
    if form == "torchscript":
        model = jit.compile(model)
    if form == "compile":
        model = torch.compile(simplified(extract_model)(model=model, map_location="cpu").eval())
    config = data.config_from_atoms(atoms)
    graph = data.AtomicData.from_config(config, z_table=AtomicNumberTable(NUMBERS), cutoff=CUTOFF)
    batch = next(iter(torch_geometric.dataloader.DataLoader([graph], batch_size=1))).to_dict()

    def evaluate() -> tuple[float, np.ndarray]:
        result = model(dict(batch), compute_stress=True)
        return float(result["energy"]), result["forces"].detach().double().numpy()

    return evaluate


if __name__ == "__main__":
    serve(make, prepare)
