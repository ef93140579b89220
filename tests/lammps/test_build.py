"""Compiling the plugin, and what an `lmp` without it does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.lammps.harness import BIN, lmp
from triforces_deploy.errors import UserError
from triforces_deploy.lammps_plugin import build, plugin_folder, pythons


@pytest.fixture
def nothing_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment and a cache without a plugin; gives the cache."""
    monkeypatch.setattr(build, "_environment_folder", lambda: tmp_path / "environment")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_finding_the_folder_is_cheap() -> None:
    program = (
        "import sys; from triforces_deploy.lammps_plugin import plugin_folder; plugin_folder(); print('torch' in sys.modules)"
    )
    build.ensure()
    start = time.monotonic()
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
    assert time.monotonic() - start < 2.0


def test_it_tells_which_python_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIFORCES_PYTHON", "of an outer environment")
    monkeypatch.setenv("TRIFORCES_LIBPYTHON", "of an outer environment")
    plugin_folder()
    assert os.environ["TRIFORCES_PYTHON"] == sys.executable
    assert os.environ["TRIFORCES_LIBPYTHON"] == pythons.shared_library()


def test_without_a_compiler(nothing_built: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"no C\+\+ compiler found; install g\+\+"):
        build.ensure()
    folder = Path(plugin_folder())
    assert folder.is_dir()
    assert not list(folder.glob("*plugin.so"))
    line = capsys.readouterr().err
    assert "triforces plugin not available: no C++ compiler found" in line
    assert line.count("\n") == 1
    monkeypatch.setenv("PMI_RANK", "1")
    plugin_folder()
    assert capsys.readouterr().err == ""


def test_lammps_works_without_the_plugin(tmp_path: Path) -> None:
    """Every `lmp` of the environment calls us; the style is then unknown, and nothing else changes."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if not os.readlink('/proc/self/exe').endswith('/lmp'):\n"
        "    from pathlib import Path\n"
        "    import triforces_deploy.lammps_plugin.build as build\n"
        "    build._environment_folder = build._cache_folder = lambda: Path('/proc/nowhere')\n"
    )
    script = "units metal\nregion r block 0 1 0 1 0 1\ncreate_box 1 r\npair_style zero 3.0\nprint 'still works'\n"
    ended = lmp(script + "pair_style triforces x.pt\n", tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert "triforces plugin not available: cannot write /proc/nowhere" in ended.text
    assert "still works" in ended.text
    assert "Unrecognized pair style 'triforces'" in ended.text


def test_a_compiler_that_fails(nothing_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cxx").write_text("#!/bin/sh\necho 'no space left' >&2\nexit 1\n")
    (tmp_path / "cxx").chmod(0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "cxx"))
    with pytest.raises(UserError, match="could not compile the plugin; its messages are in"):
        build.ensure()
    (log,) = nothing_built.rglob("compile.log")
    assert "no space left" in log.read_text()
    assert not list(nothing_built.rglob("*.so"))


def test_ranks_that_race_compile_once(nothing_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A compiler that takes its time, counts its runs and writes what `-o` names.
    (tmp_path / "cxx").write_text(
        f"#!/bin/sh\necho run >> {tmp_path}/runs\nsleep 0.5\n"
        'while [ "$1" != -o ]; do shift; done\nprintf half > "$2"; sleep 0.2; printf whole > "$2"\n'
    )
    (tmp_path / "cxx").chmod(0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "cxx"))
    program = (
        "from pathlib import Path; import triforces_deploy.lammps_plugin.build as build; "
        "build._environment_folder = lambda: Path('/nowhere'); print(build.ensure().read_text())"
    )
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True) for _ in range(3)]
    assert [r.result().stdout.strip() for r in runs] == ["whole"] * 3
    assert (tmp_path / "runs").read_text() == "run\n"


def test_new_sources_are_compiled_anew(nothing_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cxx").write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\ntouch "$2"\n')
    (tmp_path / "cxx").chmod(0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "cxx"))
    monkeypatch.setattr(build, "SOURCES", tmp_path / "src")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.cpp").write_text("int a;")
    first = build.ensure()
    assert build.ensure() == first
    (tmp_path / "src" / "a.cpp").write_text("int b;")
    assert build.ensure() != first


def test_build_id_is_that_of_the_library() -> None:
    """Truth: what binutils reads."""
    library = build._lammps_folder() / "liblammps.so"
    out = subprocess.run(["readelf", "-n", str(library)], capture_output=True, text=True, check=True).stdout
    assert f"Build ID: {build.liblammps_build_id()}" in out


def test_another_lammps_is_refused(tmp_path: Path) -> None:
    """A plugin made for another binary must not touch this one's objects: their layout differs without a new version."""
    own = build.liblammps_build_id().encode()
    content = build.ensure().read_bytes()
    assert content.count(own) >= 1
    (tmp_path / "otherplugin.so").write_bytes(content.replace(own, b"0" * len(own)))
    ended = lmp("plugin load ./otherplugin.so\nprint 'still works'\n", tmp_path)
    assert ended.code == 0
    assert f"triforces plugin not loaded: it was built for LAMMPS build {'0' * len(own)}" in ended.text
    assert "still works" in ended.text


def test_module_builds_and_explains_itself() -> None:
    command = [sys.executable, "-m", "triforces_deploy.lammps_plugin"]
    out = subprocess.run([*command, "build"], capture_output=True, text=True, check=True).stdout
    assert Path(out.removeprefix("LAMMPS plugin: ").strip()).is_file()
    usage = subprocess.run([*command, "-log", "none"], capture_output=True, text=True, check=False)
    assert usage.returncode == 2
    assert "usage: python -m triforces_deploy.lammps_plugin build | -in FILE" in usage.stderr


def test_a_python_without_a_library(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import triforces_deploy.lammps_plugin.pythons as pythons\npythons.shared_library = lambda: ''\n"
    )
    script = "units metal\nregion r block 0 1 0 1 0 1\ncreate_box 1 r\npair_style triforces x.pt\n"
    ended = lmp(script, tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert ended.code != 0
    assert "run 'python -m triforces_deploy.lammps_plugin -in FILE' instead" in ended.text
    (tmp_path / "in.test").write_text(script)
    command = [str(BIN / "python"), "-m", "triforces_deploy.lammps_plugin", "-in", "in.test", "-log", "none"]
    inside = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "x.pt does not exist" in inside.stdout
    assert inside.returncode == 1
