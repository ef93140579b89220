"""The whole examination, and how it looks."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from triforces_deploy.lammps_plugin.doctor import executables, ranks, routes, surroundings
from triforces_deploy.lammps_plugin.doctor.executables import Executable
from triforces_deploy.lammps_plugin.doctor.programs import Ended, ended
from triforces_deploy.lammps_plugin.doctor.routes import Route

LIBRARY = "import lammps; lammps.lammps(cmdargs=['-screen', 'none', '-log', 'none']).close(); print('tfdeploy-library')"
BROKEN = re.compile(surroundings.NONE + "|" + surroundings.DOES_NOT_LOAD)


@dataclasses.dataclass(frozen=True)
class Report:
    """What was found."""

    facts: dict[str, str]
    executables: tuple[Executable, ...]
    routes: tuple[Route, ...]

    @property
    def works(self) -> bool:
        """Whether there is a way to LAMMPS."""
        return any(route.works and route.lammps for route in self.routes)


def examine(lmp: Path | None = None) -> Report:
    """Look at everything at once; seconds, and no error whatever is broken.

    Args:
        lmp: a LAMMPS program to look at besides those of this environment and on PATH.
    """
    with ThreadPoolExecutor() as pool:
        torch = pool.submit(ended, [sys.executable, "-c", surroundings.TORCH])
        library = pool.submit(ended, [sys.executable, "-c", LIBRARY])
        looked = [pool.submit(_look, path) for path in executables.find(lmp)]
        plugin = surroundings.plugin_state()
        state = surroundings.torch_state(torch.result())
        torch_fails = f"torch: {state}" if BROKEN.match(state) else ""
        facts = surroundings.describe(state, plugin)
        found = [future.result() for future in looked]
        rows = [route for executable, trouble in found for route in routes.of_executable(executable, torch_fails, trouble)]
        if not found:
            rows.append(Route("lmp", False, "no LAMMPS program on PATH", "pip install 'lammps[mpi]==2025.7.22.4.0'"))
        rows.append(_in_python(library.result(), plugin, torch_fails))
        rows.append(_calculator(torch.result()))
    return Report(facts, tuple(executable for executable, _ in found), tuple(rows))


def show(report: Report, as_json: bool) -> None:
    """Print it; without the other tables of the command line, which need a torch that works."""
    if as_json:
        print(json.dumps({**dataclasses.asdict(report), "works": report.works}, indent=1))
        return
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    for table in _tables(report):
        console.print(table)


def _tables(report: Report) -> list[Table]:
    facts = Table(show_header=False)
    facts.add_column()
    facts.add_column(overflow="fold")
    for name, value in report.facts.items():
        facts.add_row(name, Text(value))
    for executable in report.executables:
        facts.add_row(Text(executable.path), Text(executable.failure or _inside(executable)))
    table = Table(title="Routes", title_justify="left")
    for heading in ("route", "works", "why", "remedy"):
        table.add_column(heading, overflow="fold")
    for route in report.routes:
        works = Text("yes", "green") if route.works else Text("no", "red")
        table.add_row(Text(route.name), works, Text(route.why), Text(route.remedy))
    return [facts, table]


def _inside(executable: Executable) -> str:
    """One line on a program that runs."""
    mpi = re.sub(r"\s+", " ", executable.mpi) or "none"
    coupling = " and ".join(executable.coupling) or "none"
    kokkos = f", Kokkos on {executable.kokkos}" if executable.kokkos else ""
    python = executable.python or "none"
    plugin = f"; plugin {executable.plugin}"
    return f"{executable.release}{kokkos}; MPI {mpi}; Python inside: {python}; ML-IAP with Python: {coupling}{plugin}"


def _look(path: str) -> tuple[Executable, tuple[str, str]]:
    executable = executables.examine(path)
    if executable.failure:
        return executable, ("", "")
    return executable, ranks.trouble(executable, ranks.launcher(path))


def _in_python(answer: Ended, plugin: str, torch_fails: str) -> Route:
    name = "import lammps, python -m triforces_deploy.lammps_plugin"
    if "tfdeploy-library" not in answer.text:
        return Route(name, False, answer.failure or "no answer", "pip install 'lammps[mpi]==2025.7.22.4.0'")
    if BROKEN.match(plugin):
        return Route(name, False, f"plugin: {plugin}", "see there")
    return Route(name, not torch_fails, torch_fails)


def _calculator(answer: Ended) -> Route:
    works = "tfdeploy-ase" in answer.text
    why = "" if works else answer.failure or "no answer"
    return Route("ASE calculator", works, why, "" if works else "pip install triforces-deploy again", lammps=False)
