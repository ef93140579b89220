"""Every check passes on a pair potential that is known to be right, and fails on one that is broken in just that respect."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from torch import Tensor

from tests.test_cli import tfdeploy
from triforces_deploy import artifact, cli
from triforces_deploy.certificate import Certificate, Check, subject
from triforces_deploy.derivatives import evaluate
from triforces_deploy.export.certify import (
    certifying,
    command,
    differences,
    dimers,
    dynamics,
    extensivity,
    page,
    parity,
    smoothness,
    speed,
    symmetry,
)
from triforces_deploy.export.certify.base import Section, Subject
from triforces_deploy.export.certify.opening import open_subject
from triforces_deploy.export.certify.structures import crystal, structures
from triforces_deploy.export.certify.words import uses, worst
from triforces_deploy.graph import Graph
from triforces_deploy.nn.scatter import scatter_sum
from triforces_deploy.payloads.base import Run
from triforces_deploy.potential import Facts, Potential

CUTOFF = 4.0
FACTS = Facts(("Ar", "Kr"), CUTOFF, 0, CUTOFF, False, composition="none")
Pairs = Callable[[Tensor], Tensor]


def lennard_jones(r: Tensor) -> Tensor:
    x = (2.0 / r) ** 6
    return 1.2 * (x * x - x)


def smooth(r: Tensor) -> Tensor:
    return lennard_jones(r) * torch.clamp(1 - (r / CUTOFF) ** 2, min=0) ** 4


def per_atom(graph: Graph, pairs: Pairs) -> Tensor:
    return scatter_sum(0.5 * pairs(graph.edge_vector.norm(dim=1)), graph.edge_index[1], graph.numbers.shape[0])


def energies_of(f: Callable[[Graph], Tensor]) -> Run:
    return lambda graph: tuple(evaluate(f, graph))


def of_pairs(pairs: Pairs) -> Run:
    return energies_of(lambda graph: per_atom(graph, pairs))


GOOD = of_pairs(smooth)


def mean(graph: Graph) -> Tensor:
    """Mean of the atoms' energies of each structure, at each atom."""
    e = per_atom(graph, smooth)
    n = scatter_sum(torch.ones_like(e), graph.batch, graph.composition.shape[0])
    return (scatter_sum(e, graph.batch, graph.composition.shape[0]) / n)[graph.batch]


def asked(run: Run, facts: Facts = FACTS, forms: dict[str, Run] | None = None) -> Subject:
    perfect = bulk("Ar", "fcc", a=3.1, cubic=True)
    potential = Potential(facts, run, "eager")
    return Subject(
        potential=potential,
        forms={name: Potential(facts, f, name) for name, f in (forms or {}).items()},
        reference=potential,
        crystal=perfect,
        structures=structures(facts.elements, perfect, {}),
        inner_cutoffs=(2.5,),
    )


def verdicts(section: Section) -> dict[str, str]:
    return {check.name: check.verdict for check in section.checks}


def not_passed(section: Section) -> dict[str, str]:
    return {name: verdict for name, verdict in verdicts(section).items() if verdict != "pass"}


def test_a_right_potential_passes_everything(tmp_path: Path) -> None:
    outcome = certifying.certify(asked(GOOD, forms={"copy": GOOD}), "digest", seconds=15)
    found = {(c.family, c.name): c for c in outcome.certificate.checks}
    assert {key: c for key, c in found.items() if c.verdict not in ("pass", "skipped")} == {}
    assert [key for key, c in found.items() if c.verdict == "skipped"] == [("LAMMPS", "ranks")]
    assert outcome.certificate.verdict == "pass"
    assert "dynamics" in outcome.certificate.use
    assert outcome.certificate.not_for == "elements other than Ar, Kr"
    text = page.write(outcome, "good.pt", tmp_path / "c.html").read_text()
    assert text.count("data:image/png;base64,") == 4
    assert "every check passes" in text
    assert "drift at constant energy" in text


def test_parity_sees_a_form_that_differs_and_a_nan() -> None:
    def nearly(graph: Graph) -> tuple[Tensor, ...]:
        energies, edge_forces = GOOD(graph)
        return energies, edge_forces * (1 + 1e-7)

    def broken(graph: Graph) -> tuple[Tensor, ...]:
        energies, edge_forces = GOOD(graph)
        return torch.where(energies < 0, energies, torch.nan), edge_forces

    found = verdicts(parity.check(asked(GOOD, forms={"nearly": nearly, "broken": broken})))
    assert [q for q in ("energy", "energy of each atom", "forces", "stress") if found[f"nearly = eager: {q}"] == "fail"] == [
        "forces",
        "stress",
    ]
    assert found["broken = eager: energy"] == found["broken = eager: energy of each atom"] == "fail"


def test_forces_that_are_no_derivative_fail() -> None:
    def scaled(graph: Graph) -> tuple[Tensor, ...]:
        energies, edge_forces = GOOD(graph)
        return energies, edge_forces * 1.001

    section = differences.check(asked(scaled))
    assert set(not_passed(section).values()) == {"fail"}
    use, not_for = uses(section.checks, FACTS)
    assert "dynamics" not in use
    assert "conserved energy" in not_for


def test_the_stress_alone_can_be_wrong() -> None:
    """Edge forces that cancel in every atom's force, because they come as a pair, but not in the virial."""

    def twisted(graph: Graph) -> tuple[Tensor, ...]:
        energies, edge_forces = GOOD(graph)
        return energies, edge_forces + 1e-2 * graph.edge_vector.roll(1, 1)

    from triforces_deploy.export.certify.base import evaluate as run

    atoms = asked(GOOD).structures["triclinic"]
    (right,), (wrong,) = (run(asked(f).potential, [atoms]) for f in (GOOD, twisted))
    assert np.abs(wrong.virial - right.virial).max() > 1e-3
    assert not_passed(differences.check(asked(twisted)))["stress = derivative of the energy"] == "fail"


def test_an_order_of_the_atoms_that_matters_fails() -> None:
    ordered = energies_of(lambda g: per_atom(g, smooth) * (1 + 1e-4 * torch.arange(g.numbers.shape[0])))
    found = verdicts(symmetry.check(asked(ordered)))
    assert (found["permutation: energy"], found["permutation: forces"]) == ("fail", "fail")


def test_a_direction_that_matters_is_a_warning_with_its_number() -> None:
    def uneven(graph: Graph) -> Tensor:
        vector = graph.edge_vector
        r = vector.norm(dim=1)
        return scatter_sum(
            0.5 * smooth(r) * (1 + 0.01 * vector[:, 0] / r * vector[:, 0] / r), graph.edge_index[1], len(graph.numbers)
        )

    section = symmetry.check(asked(energies_of(uneven)))
    assert not_passed(section) == {"rotation: energy": "warn", "rotation: forces": "warn"}
    use, not_for = uses(section.checks, FACTS)
    assert "turned against each other" in not_for
    assert "dynamics" in use


def test_a_mean_over_the_structure_is_not_separable() -> None:
    """Supercells cannot tell: the mean is theirs too. Fragments can."""
    pooled = energies_of(lambda g: mean(g) + 0.1 * mean(g) ** 2)
    found = extensivity.check(asked(pooled))
    assert not_passed(found) == {"separability, equal composition": "fail", "separability, different composition": "fail"}
    assert "energies of defects" not in uses(found.checks, FACTS)[0]


def test_an_energy_that_does_not_grow_with_the_structure_fails() -> None:
    def total(graph: Graph) -> Tensor:
        n = scatter_sum(torch.ones(len(graph.numbers), dtype=torch.float64), graph.batch, graph.composition.shape[0])
        return mean(graph) / n[graph.batch]

    assert verdicts(extensivity.check(asked(energies_of(total))))["supercells"] == "fail"


def test_a_live_composition_is_a_warning_that_says_why() -> None:
    def composed(graph: Graph) -> Tensor:
        share = graph.composition[:, 36] / graph.composition.sum(1)
        return per_atom(graph, smooth) * (1 + 0.1 * share[graph.batch])

    live = extensivity.check(asked(energies_of(composed), dataclasses.replace(FACTS, composition="live")))
    assert not_passed(live) == {"separability, different composition": "warn"}
    assert "--composition frozen" in live.checks[-1].sentence
    facts = dataclasses.replace(FACTS, composition="live", precision="bf16")  # whose bound hides the difference
    assert not_passed(extensivity.check(asked(GOOD, facts))) == {"separability, different composition": "warn"}
    silent = extensivity.check(asked(energies_of(composed)))
    assert not_passed(silent) == {"separability, different composition": "fail"}


def test_a_hard_cutoff_is_a_jump_of_its_own_size() -> None:
    section = smoothness.check(asked(of_pairs(lennard_jones)))
    jump = next(c for c in section.checks if c.name == "an atom leaves a molecule: jump of the energy")
    assert jump.verdict == "fail"
    assert jump.value == pytest.approx(1.2 * (2.0 / 4.0) ** 6, rel=0.05)  # the depth of the potential where it is cut
    assert "constant energy" not in uses(section.checks, FACTS)[0]


def test_a_kink_is_a_warning_and_no_jump() -> None:
    kinked = of_pairs(lambda r: lennard_jones(r) * (1 - r / CUTOFF).clamp(min=0) ** 2)
    assert not_passed(smoothness.check(asked(kinked))) == {"kinks of the force at the cutoffs": "warn"}


def test_an_inner_cutoff_is_found_too() -> None:
    inner = of_pairs(lambda r: smooth(r) + torch.where(r < 2.5, 1e-3, 0.0))
    assert not_passed(smoothness.check(asked(inner)))["an atom leaves a molecule: jump of the energy"] == "fail"


def test_a_neighbour_cap_jumps_in_a_crystal() -> None:
    """Two neighbours at one distance change places: the energy is the same, the forces are other atoms'."""

    def capped(graph: Graph) -> Tensor:
        r = graph.edge_vector.norm(dim=1)
        order = torch.argsort(r)
        order = order[torch.argsort(graph.edge_index[1][order], stable=True)]
        centre = graph.edge_index[1][order]
        rank = torch.arange(len(order)) - torch.searchsorted(centre, centre)
        return scatter_sum(torch.where(rank < 3, 0.5 * smooth(r[order]), 0.0), centre, len(graph.numbers))

    found = not_passed(smoothness.check(asked(energies_of(capped))))
    assert found["an atom swings in a crystal: jump of the force"] == "fail"


def test_what_a_model_says_of_itself_is_never_clean() -> None:
    facts = dataclasses.replace(FACTS, smooth=False)
    section = smoothness.check(asked(GOOD, facts))
    assert not_passed(section) == {"smooth": "warn"}
    assert worst(section.checks) == "warn"


def test_pairs_that_fall_together_and_pairs_without_a_number() -> None:
    hole = of_pairs(lambda r: smooth(r).clamp(max=30.0) - 20 * torch.exp(-((r / 0.6) ** 2)))
    assert set(not_passed(dimers.check(asked(hole))).values()) == {"warn"}
    broken = of_pairs(lambda r: smooth(r) + torch.sqrt(r - 0.8))
    assert set(not_passed(dimers.check(asked(broken))).values()) == {"fail"}


@pytest.mark.parametrize(("energy", "verdict"), [(1e-7, "pass"), (1e-5, "warn"), (1e-3, "fail")])
def test_drift_is_judged_by_its_slope(energy: float, verdict: str) -> None:
    time = np.linspace(0, 2, 400)
    run = dynamics.Run(time, energy * time, 300.0)
    check = dynamics.verdict(run, 2e-6)
    assert (check.verdict, check.value) == (verdict, pytest.approx(energy))


def test_a_short_run_is_no_failure_but_no_pass_either() -> None:
    time = np.linspace(0, 0.1, 40)
    run = dynamics.Run(time, 1e-5 * np.sin(40 * time), 300.0)
    check = dynamics.verdict(run, 1e-7)
    assert check.verdict == "warn"
    assert "too short" in check.sentence


def test_forces_with_a_curl_heat_the_crystal() -> None:
    def curled(graph: Graph) -> tuple[Tensor, ...]:
        energies, edge_forces = GOOD(graph)
        axis = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand_as(edge_forces)
        return energies, edge_forces + 0.1 * torch.linalg.cross(axis, graph.edge_vector, dim=1)

    section = dynamics.check(asked(curled), 1.0)
    assert section.checks[0].verdict == "fail"


def test_time_and_memory_are_those_of_the_potential() -> None:
    """A potential that holds 100 kB for each atom while it runs."""

    def hungry(graph: Graph) -> tuple[Tensor, ...]:
        ballast = torch.ones(graph.numbers.shape[0], 12_500, dtype=torch.float64)
        energies, edge_forces = GOOD(graph)
        return energies + 0 * ballast[:, 0], edge_forces

    per = speed.bytes_per_atom(asked(hungry).potential, bulk("Ar", "fcc", a=3.1, cubic=True).repeat((6, 6, 6)))
    assert per is None or 1e5 < per < 1.4e5


def test_the_structure_that_runs_is_the_users_own_where_it_is_a_crystal(tiny_artifact: Path) -> None:
    own = {"gas": Atoms("Si2", [(0, 0, 0), (0, 0, 2.4)]), "mine": bulk("Si", "diamond", 5.43)}
    found = artifact.read_artifact(tiny_artifact)
    assert open_subject(found, tiny_artifact).moving == "defect"
    subject_of_own = open_subject(found, tiny_artifact, own=own)
    assert subject_of_own.moving == "mine"
    assert set(own) < set(subject_of_own.structures)
    assert subject_of_own.inner_cutoffs == pytest.approx((2.0, 2.22, 2.31, 2.4, 3.0))  # scales of 4 Å; Si and Ge touch


def test_crystals_of_any_element() -> None:
    assert crystal(("Ge", "Si")).get_chemical_formula() == "Si8"
    assert crystal(("C", "Si", "H")).get_chemical_formula() in ("C4Si4", "Si8")
    assert crystal(("Cu",)).get_volume() / len(crystal(("Cu",))) == pytest.approx(3.61**3 / 4, rel=0.01)
    assert len(crystal(("H",))) == 8


def test_the_worst_check_is_the_verdict() -> None:
    def check(verdict: str) -> Check:
        return Check("f", "n", verdict, 1.0, "", 1.0, "")  # type: ignore[arg-type]

    assert worst([check("pass"), check("skipped")]) == "pass"
    assert worst([check("pass"), check("fail"), check("warn")]) == "fail"
    assert worst([check("skipped")]) == "skipped"


def test_a_failed_check_is_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Certificate(
        "fail",
        (Check("Dynamics", "drift", "fail", None, "", 1.0, "It exploded."),),
        "nothing",
        "MD",
        "eager",
        "",
        {},
        "2026-01-01",
        1.0,
    )
    monkeypatch.setattr(command, "certify_file", lambda *_args: outcome)
    assert cli.app(["certify", "x.pt", "--json"], standalone_mode=False) == 1
    assert json.loads(capsys.readouterr().out)["checks"][0]["value"] is None
    monkeypatch.setattr(command, "certify_file", lambda *_args: dataclasses.replace(outcome, verdict="warn"))
    assert not cli.app(["certify", "x.pt"], standalone_mode=False)
    assert "nothing" in capsys.readouterr().out


def test_the_certificate_travels_with_the_file(tiny_artifact: Path, tmp_path: Path) -> None:
    """A network of random weights: nothing is wrong with its arithmetic, and its physics is what it is."""
    file = tmp_path / "tiny.pt"
    file.write_bytes(tiny_artifact.read_bytes())
    before = artifact.read_artifact(file)
    assert before.metadata.certificate is None
    done = tfdeploy("certify", file, "-o", tmp_path / "report.html", "--json", "--seconds", "1")
    shown = json.loads(done.stdout)
    assert done.returncode == (1 if shown["verdict"] == "fail" else 0), done.stderr
    after = artifact.read_artifact(file)
    stored = after.metadata.certificate
    assert stored is not None
    assert (stored.verdict, stored.subject) == (shown["verdict"], subject(before.metadata))
    assert dataclasses.replace(after.metadata, certificate=None) == before.metadata
    by_name = {(c["family"], c["name"]): c["verdict"] for c in shown["checks"]}
    for key in (
        ("Derivatives", "forces = derivative of the energy"),
        ("Extensivity", "supercells"),
        ("Symmetry", "permutation: forces"),
    ):
        assert by_name[key] == "pass"
    assert by_name["LAMMPS", "2 ranks = eager: forces"] == "pass"
    assert by_name["Extensivity", "separability, different composition"] == "warn"
    assert "Not for" in (tmp_path / "report.html").read_text()
    line = tfdeploy("info", file).stdout
    assert f"{shown['verdict']} (" in line
    changed = dataclasses.replace(after.metadata, created="2001-01-01T00:00:00+00:00")
    artifact.write(file, dataclasses.replace(after, metadata=changed))
    assert "has changed since" in " ".join(tfdeploy("info", file).stdout.split())
