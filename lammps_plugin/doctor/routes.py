"""From findings to verdicts: what works here, why the rest does not, and what to do about it."""

from __future__ import annotations

import dataclasses
from datetime import date

from triforces_deploy.lammps_plugin.doctor.executables import Executable
from triforces_deploy.lammps_plugin.doctor.ranks import flavour

BUILD = "PKG_ML-IAP, PKG_ML-SNAP, PKG_PYTHON, MLIAP_ENABLE_PYTHON and BUILD_SHARED_LIBS=on, with cython and numpy at hand"
EXCHANGE = date(2025, 7, 22)
"""Kokkos builds exchange features of ghost atoms from this release on …"""
BAD_EXCHANGE = (date(2025, 10, 1), date(2025, 12, 14))
"""… but on GPUs wrongly in those between these days."""


@dataclasses.dataclass(frozen=True)
class Route:
    """One way to run a potential."""

    name: str
    works: bool
    why: str = ""
    """Why not; or what is worth knowing."""
    remedy: str = ""
    lammps: bool = True
    """Whether it is a way to LAMMPS."""


def of_executable(executable: Executable, torch_fails: str, ranks_trouble: tuple[str, str]) -> list[Route]:
    """The routes through one LAMMPS program.

    Args:
        executable: what it is.
        torch_fails: why torch does not load in this Python; empty where it does.
        ranks_trouble: as of :func:`ranks.trouble`.
    """
    name = executable.path
    if executable.failure:
        return [Route(name, False, executable.failure, _mend(executable.failure))]
    if executable.plugin == "loaded":
        style = Route(f"{name}: pair_style triforces", not torch_fails, torch_fails, "reinstall torch" if torch_fails else "")
    else:
        style = _coupled(executable)
    return [style, _several(executable, style, ranks_trouble)]


def _coupled(executable: Executable) -> Route:
    """LAMMPS' own coupling."""
    kokkos = "kokkos" in executable.coupling
    name = f"{executable.path}: pair_style mliap unified" + (" (-k on -sf kk, or plain)" if kokkos else "")
    if "ML-IAP" not in executable.packages:
        return Route(name, False, f"built without ML-IAP; plugin: {executable.plugin}", f"build LAMMPS with {BUILD}")
    if not executable.coupling:
        why = f"its ML-IAP has no Python coupling; plugin: {executable.plugin}"
        return Route(name, False, why, f"build LAMMPS with {BUILD}")
    missing = [module for module in ("triforces_deploy", "torch", "numpy") if module not in executable.modules]
    if missing:
        why = f"its Python {executable.python} finds no {', '.join(missing)}"
        return Route(
            name, False, why, "activate the environment that holds them (its bin first on PATH), or install them there"
        )
    if kokkos and "CUDA" in executable.kokkos:
        return _on_cuda(executable, name)
    if not kokkos and not executable.library:
        return Route(
            name, True, "only models without message passing: LAMMPS' functions are hidden", f"build LAMMPS with {BUILD}"
        )
    return Route(name, True, "LAMMPS on the CPU")


def _on_cuda(executable: Executable, name: str) -> Route:
    released = executable.released
    if "cupy" not in executable.modules:
        return Route(
            name, False, "Kokkos on CUDA hands over cupy arrays, and cupy is not installed", "pip install cupy-cuda12x"
        )
    if released is not None and released < EXCHANGE:
        return Route(name, False, f"release {executable.release} cannot exchange ghost atoms", "use 22 Jul 2025 or later")
    if released is not None and BAD_EXCHANGE[0] <= released <= BAD_EXCHANGE[1]:
        return Route(
            name, False, f"release {executable.release} exchanges wrong ghost features", "use 22 Jul 2025 or one of 2026"
        )
    return Route(name, True, "on GPUs: -k on g 1 -sf kk -pk kokkos newton on neigh half")


def _several(executable: Executable, style: Route, trouble: tuple[str, str]) -> Route:
    name = f"{executable.path}: several ranks"
    if not style.works:
        return Route(name, False, "one rank does not work", "see above")
    why, remedy = trouble
    return Route(name, not why, why or f"mpirun, {flavour(executable.mpi)}", remedy)


def _mend(failure: str) -> str:
    if "libpython" in failure:
        return "put the folder of that libpython on LD_LIBRARY_PATH, or install it"
    if "libmpi" in failure:
        return "load the MPI that this LAMMPS was built with (module load, LD_LIBRARY_PATH)"
    if "not found" in failure:
        return "install these libraries, or put their folder on LD_LIBRARY_PATH"
    return "reinstall or rebuild this LAMMPS"
