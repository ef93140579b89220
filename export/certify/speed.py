"""How fast the file runs on this machine, and how much memory an atom takes."""

from __future__ import annotations

import ctypes
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms

from triforces_deploy import __version__
from triforces_deploy.certificate import Check
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.potential import Potential

from .base import Section, Subject, skipped

FAMILY = "Speed and memory"
SIZES = (256, 2048)
"""Atoms, about. The larger is left out where it would take too long."""
REPEATS = 5


def check(subject: Subject, seconds: float) -> Section:
    """Time and peak memory of one evaluation; they are figures, not verdicts."""
    form, (small, large) = subject.potential, (_cell(subject.crystal, n) for n in SIZES)
    pace = measure(form, small)
    cell = large if pace * len(large) * (REPEATS + 1) < seconds else small
    pace = measure(form, cell)
    how = f"{form.backend}, {len(cell)} atoms, {torch.get_num_threads()} threads, energy and forces without the neighbour list."
    checks = [Check(FAMILY, "time", "pass", 1e6 * pace, "µs/atom", None, f"Median of {REPEATS}: {how}")]
    peak = bytes_per_atom(form, cell)
    if peak is None:
        checks.append(skipped(FAMILY, "memory", "This system does not tell a process its peak memory."))
    else:
        checks.append(Check(FAMILY, "memory", "pass", peak, "bytes/atom", None, f"Peak beyond the loaded model: {how}"))
    return Section(tuple(checks))


def measure(potential: Potential, atoms: Atoms) -> float:
    """Seconds per atom, the median of ``REPEATS`` evaluations after a first one."""
    graph = graph_from_atoms(atoms, potential.facts.cutoff)
    potential.evaluate(graph)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        potential.evaluate(graph)
        times.append(time.perf_counter() - start)
    return statistics.median(times) / len(atoms)


def bytes_per_atom(potential: Potential, atoms: Atoms) -> float | None:
    """Growth of the resident memory at its peak in one evaluation; None where the kernel keeps no such mark."""
    graph = graph_from_atoms(atoms, potential.facts.cutoff)
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier work has left behind would hide what this one needs
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        potential.evaluate(graph)
        return max(_status("VmHWM") - before, 0) / len(atoms)
    except (OSError, AttributeError, KeyError):
        return None


def _status(field: str) -> int:
    """A field of the process' own status, in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[field].split()[0])


def _cell(crystal: Atoms, n_atoms: int) -> Atoms:
    n = max(1, round((n_atoms / len(crystal)) ** (1 / 3)))
    cell: Atoms = crystal.repeat((n, n, n))
    cell.rattle(0.05, seed=19)
    return cell


def machine() -> dict[str, Any]:
    """What kind of machine this is, without its name."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_GiB": round(memory / 2**30),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "triforces_deploy": __version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
