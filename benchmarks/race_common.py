"""What every contender of benchmarks/race.py does in the same way; imports no package of any of them."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk

Evaluate = Callable[[], tuple[float, np.ndarray]]
"""Energy in eV and forces (N, 3) in eV/Å; stress is computed too."""


def silicon(n_atoms: int) -> Atoms:
    """The nearest cubic supercell of eight-atom cells, rattled."""
    repeats = max(1, round((n_atoms / 8) ** (1 / 3)))
    atoms = bulk("Si", "diamond", a=5.43, cubic=True) * (repeats, repeats, repeats)
    atoms.positions += np.random.default_rng(0).normal(scale=0.05, size=atoms.positions.shape)
    return atoms


def serve(make: Callable[..., None], prepare: Callable[[Path, str, Atoms, str], Evaluate]) -> None:
    """``make FOLDER …``, or ``run FOLDER PRECISION ATOMS FORM``: an evaluation and a line of JSON for each line on stdin."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints
    mode, *rest = sys.argv[1:]
    try:
        if mode == "make":
            folder = Path(rest[0])
            folder.mkdir(parents=True, exist_ok=True)
            make(folder, *rest[1:])
            print(json.dumps({"made": True}), file=answers, flush=True)
            return
        place, precision, n_atoms, form = rest
        evaluate = prepare(Path(place), precision, silicon(int(n_atoms)), form)
    except Exception as error:  # a form that is not there is a row of the table, not the end of the race
        print(json.dumps({"error": f"{type(error).__name__}: {error}"[:200]}), file=answers, flush=True)
        return
    ctypes.CDLL(None).malloc_trim(0)  # free memory that is still held would count for nobody, used again or not
    before = _kilobytes("VmRSS")
    # Of one thread the processor's own clock: what others do on the machine then counts for nobody.
    clock = time.process_time if os.environ["OMP_NUM_THREADS"] == "1" else time.perf_counter
    for _ in sys.stdin:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak begins anew
        start = clock()
        try:
            energy, forces = evaluate()
        except Exception as error:
            print(json.dumps({"error": f"{type(error).__name__}: {error}"[:200]}), file=answers, flush=True)
            return
        seconds = clock() - start
        peak = 1024 * (_kilobytes("VmHWM") - before)
        found = {"seconds": seconds, "peak_bytes": peak, "energy": energy, "force": float(np.sqrt(np.mean(forces**2)))}
        print(json.dumps(found), file=answers, flush=True)


def _kilobytes(key: str) -> int:
    """A line of what Linux says about the memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
