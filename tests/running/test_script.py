"""What is read off a LAMMPS input before it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.running.small import INPUT
from triforces_deploy.errors import UserError
from triforces_deploy.running.script import Dump, read_script


def script_of(folder: Path, text: str) -> Path:
    (folder / "in.md").write_text(text)
    return folder / "in.md"


def test_an_input_that_can_go_on(tmp_path: Path) -> None:
    script = read_script(script_of(tmp_path, INPUT), {"temperature": "600", "name": "out/hot"})
    assert script.obstacles == ()
    assert script.prefix == tmp_path / "out" / "hot"
    assert script.restarts == (tmp_path / "out" / "hot.restart.a", tmp_path / "out" / "hot.restart.b")
    assert script.dumps == (Dump("1", tmp_path / "out" / "hot.dump", 100),)
    assert (script.thermo, script.last_step, script.units) == (50, 2000, "metal")
    assert script.variables["temperature"] == "600"
    assert script.resume == "out/hot.restart"


def test_runs_that_count_from_where_they_are(tmp_path: Path) -> None:
    text = "variable n index 30\nrun 100\nrun $n # 500\nif '$n > 1' then 'run 5' else 'print \"run 7\"'\n"
    assert read_script(script_of(tmp_path, text), {}).last_step == 135
    assert read_script(script_of(tmp_path, text + "variable m equal 3\nrun ${m}\n"), {}).last_step is None


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("variable        resume index none", "", "it has no `variable resume index none`"),
        (" flush yes", "", "thermo_modify flush yes"),
        ("${name}.restart.a ${name}.restart.b", "${name}.*.restart", "needs `restart N FILE.a FILE.b`"),
        ("${name}.restart.a", "$(step).restart", "needs `restart N FILE.a FILE.b`"),
        ("custom 100 ${name}.dump", "custom 100 ${name}.dump.gz", "line 22: dump 1 (custom md.dump.gz) cannot be cut"),
        ("custom 100", "dcd 100", "line 22: dump 1 (dcd md.dump) cannot be cut"),
        ("custom 100", "custom ${every}", "line 22: dump 1 needs a fixed interval"),
        ("dump_modify 1 append yes", "print hello", "line 22: dump 1 needs `dump_modify 1 append yes`"),
        ("write_data ", "fix 9 all ave/time 1 1 1 c_thermo_temp file t.txt\nwrite_data ", "fix 9 writes a file"),
        ("write_data ", "clear\nwrite_data ", "'clear'"),
    ],
)
def test_why_an_input_cannot_go_on(tmp_path: Path, old: str, new: str, reason: str) -> None:
    assert old in INPUT
    (found,) = read_script(script_of(tmp_path, INPUT.replace(old, new)), {}).obstacles
    assert reason in found


def test_names_with_blanks_and_files_that_are_none(tmp_path: Path) -> None:
    path = script_of(tmp_path, INPUT)
    assert "holds blanks" in read_script(path, {"name": "a b"}).obstacles[0]
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is no text; expected a LAMMPS input"):
        read_script(path, {})
    with pytest.raises(UserError, match="does not exist; expected a LAMMPS input"):
        read_script(tmp_path / "in.none", {})
