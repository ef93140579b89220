"""mace-torch as a contender of benchmarks/race.py: small or medium, random weights.

Its forms are the module itself, scripted, under torch.compile, and what ``mace_create_lammps_model`` makes for LAMMPS: the
scripted one of ``pair_style mace``, and the one of ML-IAP, here without cuEquivariance, which is for GPUs.
"""

from __future__ import annotations

from pathlib import Path

import mace  # noqa: F401 - before e3nn, which otherwise cannot read its own tables with this torch
import numpy as np
import torch
from ase import Atoms
from e3nn import o3
from e3nn.util import jit
from mace import data, modules
from mace.calculators import LAMMPS_MACE
from mace.calculators.lammps_mliap_mace import MACEEdgeForcesWrapper
from mace.tools import AtomicNumberTable, torch_geometric
from mace.tools.compile import prepare as simplified
from mace.tools.scripts_utils import extract_model
from race_common import Evaluate, serve

NUMBERS = [14]
CUTOFF = 5.0
HIDDEN = {"mace-small": "128x0e", "mace-medium": "128x0e + 128x1o"}
"""Name of the folder → features between the layers."""


def make(folder: Path) -> None:
    """Harmonics to degree 3, order 3, two layers, as in the public models; for one element."""
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
        hidden_irreps=o3.Irreps(HIDDEN[folder.name]),
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


def prepare(folder: Path, precision: str, atoms: Atoms, form: str) -> Evaluate:
    dtype = getattr(torch, precision)
    torch.set_default_dtype(dtype)
    model = torch.load(folder / "public.model", weights_only=False).to(dtype).eval()
    model.requires_grad_(False)  # as the package's own calculator does
    config = data.config_from_atoms(atoms)
    graph = data.AtomicData.from_config(config, z_table=AtomicNumberTable(NUMBERS), cutoff=CUTOFF)
    batch = next(iter(torch_geometric.dataloader.DataLoader([graph], batch_size=1))).to_dict()
    if form.startswith("lammps"):
        return lammps(form, model, batch)
    if form == "torchscript":
        model = jit.compile(model)
    if form == "compile":
        model = torch.compile(simplified(extract_model)(model=model, map_location="cpu").eval())

    def evaluate() -> tuple[float, np.ndarray]:
        result = model(dict(batch), compute_stress=True)
        return float(result["energy"]), result["forces"].detach().double().numpy()

    return evaluate


def lammps(form: str, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> Evaluate:
    """What their styles call at each step; periodic images are the atoms themselves, not ghosts."""
    n_atoms = len(batch["positions"])
    if form == "lammps":
        scripted = jit.compile(LAMMPS_MACE(model, head="Default"))
        local = torch.ones(n_atoms, dtype=batch["positions"].dtype)

        def evaluate() -> tuple[float, np.ndarray]:
            found = scripted(dict(batch), local, compute_virials=True)
            return float(found["total_energy_local"]), found["forces"].detach().double().numpy()

        return evaluate
    wrapped = MACEEdgeForcesWrapper(model, head="Default")
    sender, receiver = batch["edge_index"]
    vectors = (batch["positions"][receiver] - batch["positions"][sender] + batch["shifts"]).detach()
    given = {
        "vectors": vectors,
        "node_attrs": batch["node_attrs"],
        "edge_index": batch["edge_index"],
        "batch": batch["batch"],
        "lammps_class": None,
        "natoms": (n_atoms, 0),
    }

    def evaluate_edges() -> tuple[float, np.ndarray]:
        energy, _, pairs = wrapped({**given, "vectors": vectors.clone()})
        forces = torch.zeros(n_atoms, 3, dtype=pairs.dtype).index_add_(0, receiver, pairs).index_add_(0, sender, -pairs)
        torch.einsum("ei,ej->ij", pairs, vectors)
        return float(energy), forces.double().numpy()

    return evaluate_edges


if __name__ == "__main__":
    serve(make, prepare)
