"""The LAMMPS programs of this machine, asked what they are."""

from __future__ import annotations

import dataclasses
import glob
import mmap
import os
import re
import sys
from datetime import date, datetime
from pathlib import Path

from triforces_deploy.lammps_plugin.doctor.programs import Ended, ended

PROBE = """import importlib.util, sys
print("tfdeploy-python", sys.version.split()[0], sys.prefix, sys.version_info[:2] >= (3, 11))
for name in ("triforces_deploy", "torch", "numpy", "cupy"):
    print("tfdeploy-module", name, importlib.util.find_spec(name) is not None)
"""
COUPLING = (b"mliap_unified_couple", b"mliap_unified_couple_kokkos")
"""Names that only builds with the Python coupling contain, plain and Kokkos."""


@dataclasses.dataclass(frozen=True)
class Executable:
    """A LAMMPS program."""

    path: str
    failure: str = ""
    """Why it does not even print its help; empty where it does."""
    release: str = ""
    """As in '22 Jul 2025'."""
    packages: tuple[str, ...] = ()
    mpi: str = ""
    """The library it speaks, by its own words."""
    kokkos: str = ""
    """What Kokkos runs on, e.g. 'CUDA OpenMP'; empty without Kokkos."""
    coupling: tuple[str, ...] = ()
    """'plain' and 'kokkos': ML-IAP couplings with Python that are built in."""
    library: bool = False
    """Whether its Python can reach LAMMPS' functions: not where they are linked in statically and hidden."""
    python: str = ""
    """Version and prefix of the Python inside."""
    modules: tuple[str, ...] = ()
    """Those of ours that it finds."""
    plugin: str = ""
    """'loaded', or why it is not."""

    @property
    def released(self) -> date | None:
        try:
            return datetime.strptime(self.release, "%d %b %Y").date()
        except ValueError:
            return None


def find(given: Path | None) -> list[str]:
    """LAMMPS programs: the given one, that of this environment, those on PATH; each once."""
    folders = [str(Path(sys.executable).parent), *os.environ.get("PATH", "").split(os.pathsep)]
    names = [name for folder in filter(None, folders) for name in sorted(glob.glob(os.path.join(glob.escape(folder), "lmp*")))]
    fitting = [n for n in names if re.fullmatch(r"lmp(_\w+)?", os.path.basename(n)) and os.access(n, os.X_OK)]
    found: dict[str, str] = {}
    for name in ([str(given.absolute())] if given else []) + fitting:
        if not os.path.isdir(name):
            found.setdefault(os.path.realpath(name), name)
    return list(found.values())


def examine(path: str) -> Executable:
    """Ask one program; never raises."""
    shown = ended([path, "-h"])
    if shown.code != 0 or "Massively Parallel Simulator" not in shown.text:
        return Executable(path, failure=why_not(path, shown))
    text = shown.text
    packages = _packages(text)
    real = _real_program(text) or path
    libraries = re.findall(r"liblammps\S* => (/\S+)", ended(["ldd", real]).text)
    python, modules = _python(path) if "PYTHON" in packages else ("", ())
    return Executable(
        path,
        release=_match(r"Simulator - (\d+ \w+ \d+)", text),
        packages=packages,
        mpi=_match(r"^MPI (v.*)", text),
        kokkos=_match(r"KOKKOS package API: *(.*)", text),
        coupling=_coupling([real, *libraries]) if "ML-IAP" in packages else (),
        library=bool(libraries) or "PLUGIN" in packages,
        python=python,
        modules=modules,
        plugin=_plugin(path) if "PLUGIN" in packages else "built without the PLUGIN package",
    )


def why_not(path: str, shown: Ended) -> str:
    """Why a program does not start, naming the library where one is missing."""
    missing = missing_libraries(path)
    if missing:
        return f"shared libraries not found: {', '.join(missing)}"
    return shown.failure or "it does not print LAMMPS' help"


def missing_libraries(path: str) -> list[str]:
    """Shared libraries that a program or library asks for and the loader does not find."""
    return re.findall(r"^\s*(\S+) => not found", ended(["ldd", path]).text, re.MULTILINE)


def script(path: str, text: str, *before: str) -> Ended:
    """What a LAMMPS program says to some lines of input."""
    return ended([*before, path, "-in", "in.probe", "-log", "none", "-nocite"], files={"in.probe": text})


def _packages(text: str) -> tuple[str, ...]:
    _, _, rest = text.partition("Installed packages:")
    names = []
    for line in rest.strip().splitlines():
        if not re.fullmatch(r"[A-Z0-9\- ]+", line.strip()):
            break
        names += line.split()
    return tuple(names)


def _real_program(text: str) -> str | None:
    """Where the wheel's `lmp` is a script, its help names the program behind it."""
    name = _match(r"Usage example: (\S+)", text)
    return name if os.path.isfile(name) else None


def _coupling(files: list[str]) -> tuple[str, ...]:
    inside = [any(_contains(file, name + b"\0") for file in files) for name in COUPLING]
    return tuple(kind for kind, there in zip(("plain", "kokkos"), inside, strict=True) if there)


def _contains(file: str, name: bytes) -> bool:
    try:
        with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as content:
            return content.find(name) >= 0
    except (OSError, ValueError):
        return False


def _python(path: str) -> tuple[str, tuple[str, ...]]:
    answer = script(path, f'python source here """\n{PROBE}"""\n')
    version = _match(r"^tfdeploy-python (\S+ \S+)", answer.text).replace(" ", " in ")
    found = re.findall(r"^tfdeploy-module (\S+) True", answer.text, re.MULTILINE)
    return version or f"does not start ({answer.failure or 'no answer'})", tuple(found)


def _plugin(path: str) -> str:
    answer = script(path, "plugin list\n")
    if re.search(r"pair style plugin triforces\s*$", answer.text, re.MULTILINE):
        return "loaded"
    said = _match(r"triforces plugin not (?:available|loaded): (.*)", answer.text)
    return said or answer.failure or "this program does not look for it"


def _match(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    return found[1].strip() if found else ""
