"""What every contender of benchmarks/race.py does in the same way; imports no package of any of them."""

from __future__ import annotations

import json
import os
import resource
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


def serve(make: Callable[[Path], None], prepare: Callable[[str, Path, str, Atoms], Evaluate]) -> None:
    """``make FOLDER``, or ``run FORM FOLDER PRECISION ATOMS``: an evaluation and a line of JSON for each line on stdin."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints
    mode, *rest = sys.argv[1:]
    try:
        if mode == "make":
            folder = Path(rest[0])
            folder.mkdir(exist_ok=True)
            make(folder)
            print(json.dumps({"made": True}), file=answers, flush=True)
            return
        form, place, precision, n_atoms = rest
        evaluate = prepare(form, Path(place), precision, silicon(int(n_atoms)))
    except Exception as error:  # a form that is not there is a row of the table, not the end of the race
        print(json.dumps({"error": f"{type(error).__name__}: {error}"[:200]}), file=answers, flush=True)
        return
    before = _resident()
    # Of one thread the processor's own clock: what others do on the machine then counts for nobody.
    clock = time.process_time if os.environ["OMP_NUM_THREADS"] == "1" else time.perf_counter
    for _ in sys.stdin:
        start = clock()
        try:
            energy, forces = evaluate()
        except Exception as error:
            print(json.dumps({"error": f"{type(error).__name__}: {error}"[:200]}), file=answers, flush=True)
            return
        seconds = clock() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        found = {"seconds": seconds, "peak_bytes": peak, "energy": energy, "force": float(np.sqrt(np.mean(forces**2)))}
        print(json.dumps(found), file=answers, flush=True)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
