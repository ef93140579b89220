"""What CONTRIBUTING shows works as it stands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_example_of_a_backbone_keeps_the_contract(tmp_path: Path) -> None:
    for folder in ("triforces_deploy", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "fixtures"))
    for part in ("training", "export", "importing", "lammps_plugin"):
        (tmp_path / "triforces_deploy" / part).symlink_to(ROOT / part)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (diff,) = re.findall(r"```diff\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    subprocess.run(["git", "apply", "-C1"], input=diff, text=True, cwd=tmp_path, check=True, capture_output=True)
    name = re.findall(r'^\+    "(\w+)": \("triforces_deploy\.backbones', diff, re.MULTILINE)[0]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_backbones.py", "-k", name]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 10
