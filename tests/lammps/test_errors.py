"""Whatever goes wrong: one clear message, every rank ends soon, the exit code says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from ase.io import write

from tests.lammps import cases
from tests.lammps.harness import BIN, Host, lmp, run
from triforces_deploy.export.exporting import ExportOptions, export

INPUT = """
units metal
atom_style atomic
newton on
read_data system.data
mass 1 28.085
mass 2 72.63
pair_style triforces {artifact}
pair_coeff * * Si Ge
fix 1 all nve
thermo 1
run 1
run 1000000
"""

FAULT = """
import os, time
if os.readlink("/proc/self/exe").endswith("/lmp"):
    from triforces_deploy.potential import Potential
    evaluate, calls = Potential.evaluate, []
    def faulty(self, graph, handler=None):
        calls.append(1)
        if len(calls) < 5 or os.environ.get("PMI_RANK") != "1":
            return evaluate(self, graph, handler)
        print("FAULT NOW", flush=True)
        {fault}
    Potential.evaluate = faulty
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "system.data", cases.orthogonal(), format="lammps-data", specorder=["Si", "Ge"], units="metal")
    return tmp_path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{artifact}", "missing.pt", "missing.pt does not exist"),
        ("{artifact}", "cut.pt", "cut.pt is damaged or truncated"),
        ("Si Ge", "Si C", "element C is not in"),
        ("units metal", "units lj", "units lj; write 'units metal' or 'units real'"),
        ("newton on", "newton off", "write 'newton on'"),
        ("fix 1", "change_box all triclinic\ncomm_style tiled\nbalance 1.0 rcb\nfix 1", "write 'comm_style brick'"),
    ],
)
def test_mistakes_on_two_ranks(folder: Path, tiny_artifact: Path, old: str, new: str, message: str) -> None:
    content = tiny_artifact.read_bytes()
    (folder / "cut.pt").write_bytes(content[: len(content) // 2])
    ended = lmp(INPUT.replace(old, new).format(artifact=tiny_artifact), folder, ranks=2)
    lines = [line for line in ended.text.splitlines() if line.startswith("ERROR")]
    assert len(lines) == 1, ended.text
    assert message in lines[0]
    assert "Traceback" not in ended.text
    assert ended.code != 0


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raise RuntimeError('broken on purpose')", "ERROR on proc 1: Python failed: RuntimeError: broken on purpose"),
        ("os.kill(os.getpid(), 9)", ""),
        ("os.kill(os.getppid(), 9); time.sleep(90)", ""),
        ("e = evaluate(self, graph, handler); e.edge_forces[7, 1] = float('nan'); return e", "nearest neighbour at 2."),
        ("e = evaluate(self, graph, handler); e.energies[3] = float('inf'); return e", "ERROR on proc 1: the energy of atom"),
    ],
    ids=["exception", "killed program", "killed launcher", "nan", "infinite energy"],
)
def test_one_rank_fails_in_the_middle_of_a_run(folder: Path, tiny_artifact: Path, fault: str, message: str) -> None:
    (folder / "sitecustomize.py").write_text(FAULT.replace("{fault}", fault))
    # The other rank waits in an exchange for the one that failed; without an end to the job this would time out.
    # Of a killed process mpirun tells, not we.
    ended = lmp(INPUT.format(artifact=tiny_artifact), folder, ranks=2, env={"PYTHONPATH": str(folder)}, timeout=60)
    assert "FAULT NOW" in ended.text
    assert ended.code != 0
    assert message in ended.text, ended.text


SETUP_FAULT = """
import os
if os.readlink("/proc/self/exe").endswith("/lmp") and os.environ.get("PMI_RANK") == "1":
    from triforces_deploy.lammps_plugin import {module}
    def faulty(*_args, **_options):
        raise RuntimeError("broken on purpose")
    {place} = faulty
"""


@pytest.mark.parametrize(
    ("module", "place"),
    [("placement", "placement.load"), ("startup", "startup.describe"), ("session", "session.self_test")],
    ids=["while opening the file", "while checking the run", "while trying the exchange"],
)
def test_one_rank_fails_before_the_first_step(folder: Path, tiny_artifact: Path, module: str, place: str) -> None:
    (folder / "sitecustomize.py").write_text(SETUP_FAULT.format(module=module, place=place))
    ended = lmp(INPUT.format(artifact=tiny_artifact), folder, ranks=2, env={"PYTHONPATH": str(folder)}, timeout=60)
    errors = [line for line in ended.text.splitlines() if line.startswith("ERROR")]
    assert len(errors) == 1, ended.text
    assert "RuntimeError: broken on purpose" in errors[0]
    assert ended.code != 0


def test_one_rank_fails_inside_python(folder: Path, tiny_artifact: Path) -> None:
    """The same when LAMMPS runs inside the interpreter."""
    fault = FAULT.replace('os.readlink("/proc/self/exe").endswith("/lmp")', "'PMI_RANK' in os.environ")
    (folder / "sitecustomize.py").write_text(fault.replace("{fault}", "raise RuntimeError('broken on purpose')"))
    (folder / "in.test").write_text(INPUT.format(artifact=tiny_artifact))
    command = [str(BIN / "python"), "-m", "triforces_deploy.lammps_plugin", "-in", "in.test", "-log", "none"]
    ended = run(command, folder, 2, {"PYTHONPATH": str(folder)}, timeout=60)
    assert ended.code != 0
    assert "RuntimeError: broken on purpose" in ended.text


@pytest.mark.parametrize(
    ("style", "coefficients", "message"),
    [
        ("triforces", "* * Si Ge", "takes one argument"),
        ("triforces {} {}", "* * Si Ge", "takes one argument"),
        ("mliap unified", "* * Si Ge", "expected: pair_style mliap unified FILE"),
        ("mliap unified {} 2", "* * Si Ge", "expected: pair_style mliap unified FILE"),
        ("mliap nonsense", "* * Si Ge", "Illegal pair_style mliap command"),
        ("triforces {}", "* * Si", "needs one element for each of the 2 atom types"),
        ("triforces {}", "* * Si ge", "did you mean 'Ge'"),
        ("triforces {}", "* * Si NULL", "All pair coeffs are not set"),
        ("triforces {}", "* * Ge Si", "type 1 is Ge in pair_coeff but its mass 28.085 is that of Si"),
        ("hybrid/overlay mliap unified {} mliap model linear x descriptor sna y", "* * Si Ge", "with and without 'unified'"),
    ],
)
def test_mistakes_on_one_rank(host: Host, tiny_artifact: Path, style: str, coefficients: str, message: str) -> None:
    host.load(cases.orthogonal())
    with pytest.raises(Exception, match=message):
        host(f"pair_style {style.replace('{}', str(tiny_artifact))}\npair_coeff {coefficients}\nrun 0")
    # The instance is still good.
    host(f"pair_style triforces {tiny_artifact}\npair_coeff * * Si Ge")
    host.result()


def test_bonds_that_hide_neighbours(host: Host, tiny_artifact: Path) -> None:
    host.load(cases.orthogonal(), style="bond")
    host(f"pair_style triforces {tiny_artifact}\npair_coeff * * Si Ge\nbond_style zero")
    with pytest.raises(Exception, match="special_bonds lj/coul 1 1 1"):
        host("run 0")
    host("special_bonds lj/coul 1 1 1\nrun 0")


def test_atoms_on_top_of_each_other(host: Host, tiny_artifact: Path) -> None:
    atoms = cases.orthogonal()
    atoms.positions[4] = atoms.positions[9]
    host.load(atoms)
    host(f"pair_style triforces {tiny_artifact}\npair_coeff * * Si Ge")
    with pytest.raises(Exception, match=r"atoms 5 and 10 are 0\.0+ Angstrom apart"):
        host("run 0")


def test_elements_that_a_frozen_composition_lacks(host: Host, tiny_checkpoint: Path, tmp_path: Path) -> None:
    structure = cases.orthogonal()
    structure.symbols[:] = "Si"
    frozen = tmp_path / "frozen.pt"
    export(tiny_checkpoint, frozen, ExportOptions(composition="frozen", structure=structure, backends=()))
    host.load(cases.orthogonal())
    host(f"pair_style triforces {frozen}\npair_coeff * * Si Ge")
    with pytest.raises(Exception, match="element Ge: the frozen composition holds Si only"):
        host("run 0")
    host("set type 2 type 1\nrun 0")
    assert "composition: frozen at Si64 (this system: Si64)" in host.log.read_text()
