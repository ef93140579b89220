"""LAMMPS: the loadable plugin and LAMMPS' own ML-IAP coupling.

Imports nothing heavy: every ``lmp`` of the environment calls :func:`plugin_folder`, also those that never use a potential
of ours.
"""

from __future__ import annotations

import os
import sys


def plugin_folder() -> str:
    """Entry point of the group ``lammps.plugins``: the folder from which LAMMPS loads ``triforcesplugin.so``.

    Compiles the plugin when it has not been yet, and tells it through the environment which Python to use. Never raises,
    because that would break every ``lmp`` of the environment: a plugin that cannot be had costs one line on stderr.
    """
    try:
        from triforces_deploy.lammps_plugin import build, pythons

        pythons.announce()
        return str(build.ensure().parent)
    except Exception as error:
        if _first_rank():
            print(f"triforces plugin not available: {error}", file=sys.stderr, flush=True)
        return os.path.join(os.path.dirname(__file__), "src")  # holds no library, so LAMMPS finds nothing there


def _first_rank() -> bool:
    """Whether this process is the one of an MPI job that speaks; LAMMPS has not started MPI yet."""
    ranks = (os.environ.get(name) for name in ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID"))
    return next((rank for rank in ranks if rank is not None), "0") == "0"
