"""``tfdeploy run`` where nothing goes wrong, and where the user does."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.running.faults import TFDEPLOY
from tests.running.small import same, write_case
from triforces_deploy.errors import UserError
from triforces_deploy.running.logs import read_log
from triforces_deploy.running.run import Options, run

MELT = """
units lj
lattice fcc 0.8442
region box block 0 3 0 3 0 3
create_box 1 box
create_atoms 1 box
mass 1 1.0
velocity all create 3.0 87287
pair_style lj/cut 2.5
pair_coeff 1 1 1.0 1.0
fix 1 all nve
run {steps}
"""


def tfdeploy(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([TFDEPLOY, "run", *arguments], cwd=folder, capture_output=True, text=True, timeout=250, check=False)


def test_any_input_runs(tmp_path: Path) -> None:
    """With a note that it cannot go on; its variables, table and JSON."""
    (tmp_path / "in.melt").write_text(MELT.format(steps="${n}"))
    done = tfdeploy(tmp_path, "in.melt", "-v", "n", "150", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    shown = json.loads(done.stdout)
    assert (shown["step"], shown["atoms"], shown["done"], shown["exit_code"]) == (150, 108, True, 0)
    assert Path(shown["picture"]).read_bytes().startswith(b"\x89PNG")
    done = tfdeploy(tmp_path, "in.melt", "-v", "n", "100")
    assert done.stderr.startswith("note: in.melt cannot go on after a kill: it has no `variable resume index none`")
    assert "in.melt: done" in done.stdout
    assert [t.steps for t in read_log(tmp_path / "in.melt.log").tables] == [100]


def test_an_error_of_lammps_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "in.melt").write_text(MELT.format(steps=10) + "pair_style nonsense\n")
    done = tfdeploy(tmp_path, "in.melt")
    assert done.returncode == 1
    assert done.stderr.splitlines()[1:] == [
        "tfdeploy: ERROR: Unrecognized pair style 'nonsense'; the same command starts from the beginning"
    ]
    assert "in.melt: not done" in done.stdout


def test_ranks_and_figures(reference: Path, tmp_path: Path) -> None:
    """Two ranks; speed as LAMMPS itself tells it, and a second call that has nothing to do."""
    write_case(tmp_path)
    outcome = run(tmp_path / "in.md", Options(ranks=2), progress=False)
    assert outcome.code == 0
    text = (tmp_path / "md.log").read_text()
    assert "on 2 procs" in text
    loops = [(t.seconds, t.steps) for t in read_log(tmp_path / "md.log").tables[1:]]
    seconds = sum(s for s, _ in loops if s)
    assert outcome.summary.ns_per_day == pytest.approx(2000e-6 / seconds * 86400, rel=1e-6)
    assert outcome.summary.atoms == 63
    again = run(tmp_path / "in.md", Options(), progress=False)
    assert again.summary == outcome.summary


def test_an_input_that_was_made_longer_goes_on(reference: Path, tmp_path: Path) -> None:
    text = write_case(tmp_path).read_text()
    (tmp_path / "in.md").write_text(text.replace("2000", "1800"))
    assert run(tmp_path / "in.md", Options(), progress=False).summary.step == 1800
    (tmp_path / "in.md").write_text(text)
    assert run(tmp_path / "in.md", Options(), progress=False).summary.starts == 2
    same(tmp_path, reference)


def test_other_variables_need_another_name(tmp_path: Path) -> None:
    write_case(tmp_path)
    assert run(tmp_path / "in.md", Options(), progress=False).code == 0
    with pytest.raises(UserError, match="md was run with temperature = 300, now it is 600; give the new run a name"):
        run(tmp_path / "in.md", Options(arguments=("-v", "temperature", "600")), progress=False)
    options = Options(arguments=("-v", "temperature", "600", "-v", "name", "hot/md"))
    assert run(tmp_path / "in.md", options, progress=False).code == 0
    assert (tmp_path / "hot" / "md.final.data").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.in",), "missing.in does not exist; expected a LAMMPS input"),
        ((), "name the LAMMPS input first"),
        (("-v", "n", "3", "in.melt"), "name the LAMMPS input first"),
        (("in.melt", "-log", "x"), "-log cannot be given here"),
        (("in.melt", "-v", "n"), "-v needs a name and a value"),
        (("in.melt", "-v", "resume", "x"), "leave out -v resume"),
        (("in.melt", "--lmp", "./none"), "none does not exist; expected the LAMMPS program"),
        (("in.melt", "--launcher", "no-such-launcher -n"), "cannot start no-such-launcher: No such file or directory"),
        (("in.melt", "--ranks", "0"), "Invalid value for '--ranks'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    (tmp_path / "in.melt").write_text(MELT.format(steps=10))
    done = tfdeploy(tmp_path, *arguments)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
