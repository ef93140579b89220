"""sevenn as a contender of benchmarks/race.py: the sizes of SevenNet-0, random weights; eager and TorchScript."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import sevenn._keys as key
import torch
from ase import Atoms
from e3nn.util import jit
from race_common import Evaluate, serve
from sevenn._const import DEFAULT_E3_EQUIVARIANT_MODEL_CONFIG
from sevenn.atom_graph_data import AtomGraphData
from sevenn.model_build import build_E3_equivariant_model
from sevenn.train.dataload import unlabeled_atoms_to_graph

HIDDEN = "128x0e+64x1e+32x2e"
CONFIG = {
    key.CUTOFF: 5.0,
    key.NODE_FEATURE_MULTIPLICITY: 128,
    key.IS_PARITY: False,
    key.LMAX: 2,
    key.NUM_CONVOLUTION: 5,
    key.IRREPS_MANUAL: ["128x0e", *[HIDDEN] * 4, "128x0e"],
    key.CUTOFF_FUNCTION: {key.CUTOFF_FUNCTION_NAME: "XPLOR", "cutoff_on": 4.5},
    key.RADIAL_BASIS: {key.RADIAL_BASIS_NAME: "bessel", "bessel_basis_num": 8},
    key.SELF_CONNECTION_TYPE: "linear",
    key.CHEMICAL_SPECIES: ["Si"],
    key.NUM_SPECIES: 1,
    key.TYPE_MAP: {14: 0},
    key.CONV_DENOMINATOR: 28.0,
    key.SHIFT: 0.0,
    key.SCALE: 1.0,
}
"""As presets/sevennet-0.yaml of the package has them, for one element."""


def prepare(_folder: Path, precision: str, atoms: Atoms, form: str) -> Evaluate:
    dtype = getattr(torch, precision)
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    warnings.simplefilter("ignore")
    model = build_E3_equivariant_model({**DEFAULT_E3_EQUIVARIANT_MODEL_CONFIG, **CONFIG})
    model.to(dtype).eval()
    model.requires_grad_(False)
    model.set_is_batch_data(False)
    model.eval_type_map = torch.tensor(True)
    if form == "torchscript":
        model = torch.jit.freeze(jit.script(model))
    data = AtomGraphData.from_numpy_dict(unlabeled_atoms_to_graph(atoms, CONFIG[key.CUTOFF])).to_dict()
    graph = {k: v.to(dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in data.items()}

    def evaluate() -> tuple[float, np.ndarray]:
        given = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in graph.items()}
        found = model(given)
        return float(found[key.PRED_TOTAL_ENERGY].detach()), found[key.PRED_FORCE].detach().double().numpy()

    return evaluate


def make(_folder: Path) -> None:
    """Nothing to share."""


if __name__ == "__main__":
    serve(make, prepare)
