"""The rules of the house: which part may import which, and that what is there gets installed."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("training", "export", "importing", "lammps_plugin")
ROOF = ("triforces_deploy/cli.py",)
SOURCES = sorted(p for folder in ("triforces_deploy", *PARTS) for p in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> list[str]:
    """Absolute names a file imports, in functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def broken_rules(name: str, imported: list[str]) -> list[str]:
    part = name.split("/")[0]
    wrong = []
    for target in imported:
        if target.split(".")[0] in PARTS:
            wrong.append(f"{name}: 'import {target}' makes a second copy of the package; write triforces_deploy.{target}")
        for other in PARTS:
            inside = f"{target}.".startswith(f"triforces_deploy.{other}.")
            if inside and part == "triforces_deploy" and name not in ROOF:
                wrong.append(f"{name}: the core imports the part {other}")
            if inside and part in PARTS and part != other:
                wrong.append(f"{name}: the part {part} imports the part {other}")
    return wrong


def test_the_parts_import_downwards_only() -> None:
    wrong = [line for path in SOURCES for line in broken_rules(str(path.relative_to(ROOT)), imports(path))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("triforces_deploy/model.py", "triforces_deploy.export.capture"),
        ("export/verify.py", "triforces_deploy.training.data"),
        ("tests/test_x.py", "lammps_plugin.bridge"),
    ],
)
def test_the_rules_catch_a_wrong_import(name: str, target: str) -> None:
    assert broken_rules(name, [target])


def test_tests_use_the_installed_names() -> None:
    for folder in ("tests", "examples", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not [i for i in imports(path) if i.split(".")[0] in PARTS], path


def test_every_package_is_installed() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {str(p.parent.relative_to(ROOT)) for p in SOURCES if p.name == "__init__.py"}
    names = {
        f.replace("/", ".") if f.startswith("triforces_deploy") else "triforces_deploy." + f.replace("/", ".") for f in folders
    }
    assert set(setup["packages"]) == names
    assert {v: k for k, v in setup["package-dir"].items()} == {p: f"triforces_deploy.{p}" for p in PARTS}


def test_only_scatter_sums_over_atoms() -> None:
    guilty = [p.name for p in SOURCES if "index_add" in p.read_text() and p.name != "scatter.py"]
    assert not guilty


def test_nothing_probes_for_attributes() -> None:
    """``hasattr`` hides what a type should say."""
    guilty = [
        f"{p.relative_to(ROOT)}:{n.lineno}"
        for p in SOURCES
        for n in ast.walk(ast.parse(p.read_text()))
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == "hasattr"
    ]
    assert not guilty
