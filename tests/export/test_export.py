"""Every compiled form equals eager, on one rank and on several; and what cannot be exported is refused."""

from __future__ import annotations

import dataclasses
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from ase import Atoms
from ase.build import bulk

from tests.tiny import TINY, tiny_model
from triforces_deploy import artifact, checkpoint
from triforces_deploy.artifact import Parity
from triforces_deploy.errors import UserError
from triforces_deploy.export import capture
from triforces_deploy.export.backends.base import Captured
from triforces_deploy.export.exporting import ExportOptions, export, reverify
from triforces_deploy.export.probes import probe_structures
from triforces_deploy.export.verify import QUANTITIES, Deviation, check, parity, tolerance
from triforces_deploy.graph import collate
from triforces_deploy.model import Model
from triforces_deploy.neighbours import graph_from_atoms

COMPILED = ("aoti", "torchscript")


def sige(symbols: str = "Si5Ge3") -> Atoms:
    atoms = bulk("Si", "diamond", 5.43, cubic=True)
    atoms.symbols = symbols
    atoms.rattle(0.1, seed=5)
    return atoms


@pytest.mark.parametrize("backend", COMPILED)
def test_compiled_equals_eager_at_every_size(compiled_artifact: Path, backend: str) -> None:
    """Sizes that capture never saw, nothing at all included."""
    ours, eager = artifact.load(compiled_artifact, backend), artifact.load(compiled_artifact, "eager")
    assert ours.backend == backend
    structures = {**probe_structures(TINY.elements, seed=9), "nothing": Atoms(), "pair": Atoms("Si2", [(0, 0, 0), (0, 0, 2.4)])}
    graphs = [graph_from_atoms(atoms, TINY.cutoff) for atoms in (*structures.values(), sige().repeat((3, 2, 2)))]
    for graph in (*graphs, collate(graphs)):
        new, old = ours.evaluate(graph), eager.evaluate(graph)
        torch.testing.assert_close(new.energies, old.energies, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(new.edge_forces, old.edge_forces, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", COMPILED)
def test_the_exchange_lives_inside_the_compiled_graph(compiled_artifact: Path, backend: str) -> None:
    """Each exchange is called once forward and once backward per evaluation, in whatever handler is there at run time."""

    class Doubling:
        def __init__(self) -> None:
            self.forwards = self.adjoints = 0

        def forward(self, h: torch.Tensor) -> torch.Tensor:
            self.forwards += 1
            return 2 * h

        def adjoint(self, g: torch.Tensor) -> torch.Tensor:
            self.adjoints += 1
            return 2 * g

    graph = graph_from_atoms(sige(), TINY.cutoff)
    results = []
    for name in (backend, "eager"):
        potential, handler = artifact.load(compiled_artifact, name), Doubling()
        results.append(potential.evaluate(graph, handler))
        assert handler.forwards == handler.adjoints == potential.facts.n_exchanges == 4
    torch.testing.assert_close(results[0].edge_forces, results[1].edge_forces, rtol=1e-11, atol=1e-12)
    plain = artifact.load(compiled_artifact, backend).evaluate(graph)
    assert (plain.edge_forces - results[0].edge_forces).abs().max() > 1e-3


def test_the_file_carries_its_parity_and_policies(compiled_artifact: Path) -> None:
    metadata = artifact.read_artifact(compiled_artifact).metadata
    assert {p.backend for p in metadata.parity} == {*COMPILED, "eager"}
    assert all(max(p.energy, p.forces, p.stress) <= 1e-10 and p.structures == 6 for p in metadata.parity)
    assert any("composition: live" in line for line in metadata.facts.policies)
    assert {p.backend: p.target for p in metadata.payloads}["torchscript"] == "any"


def test_float32_keeps_its_promise(tiny_checkpoint: Path, tmp_path: Path) -> None:
    made = export(tiny_checkpoint, tmp_path / "f32.pt", ExportOptions(precision="float32", backends=("torchscript",)))
    assert made.metadata.facts.precision == "float32"
    against = {(p.backend, p.reference): max(p.energy, p.forces, p.stress) for p in made.metadata.parity}
    assert against["torchscript", "eager float32"] <= 1e-5
    assert 1e-9 < against["torchscript", "eager float64"] <= 1e-4
    result = artifact.load(tmp_path / "f32.pt").evaluate(graph_from_atoms(sige(), TINY.cutoff))
    assert result.energies.dtype == result.edge_forces.dtype == torch.float64


def test_another_checkpoint_does_not_pass_verification(tiny_artifact: Path, tmp_path: Path) -> None:
    other = tiny_model(seed=1)
    checkpoint.save(tmp_path / "other.ckpt", other, {})
    (result,) = reverify(artifact.read_artifact(tiny_artifact), "tiny", tmp_path / "other.ckpt", {})
    with pytest.raises(UserError, match=r"eager differs from other.ckpt: energy by"):
        check(result)


def test_a_nan_does_not_pass_verification() -> None:
    with pytest.raises(UserError, match="forces"):
        check(Parity("aoti", "eager", 1, 0.0, float("nan"), 0.0, 1e-10))


def test_a_wrong_compiled_form_never_becomes_a_file(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forces wrong in the eighth digit are caught before there is a file."""

    def slightly_wrong(model: Model, *rest: Any) -> Captured:
        right = model.run
        monkeypatch.setattr(model, "run", lambda *args: (right(*args)[0], right(*args)[1] * (1 + 1e-8)))
        captured = capture.capture(model, *rest)
        monkeypatch.undo()
        return captured

    monkeypatch.setattr("triforces_deploy.export.exporting.capture", slightly_wrong)
    with pytest.raises(UserError, match=r"torchscript differs from eager float64: forces by 1.00e-08"):
        export(tiny_checkpoint, tmp_path / "wrong.pt", ExportOptions(backends=("torchscript",)))
    assert list(tmp_path.iterdir()) == []


def test_frozen_composition(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Frozen to its own composition nothing changes; another structure sees the frozen one, and no other element."""
    options = ExportOptions(composition="frozen", structure=sige(), backends=())
    export(tiny_checkpoint, tmp_path / "frozen.pt", options)
    frozen = artifact.load(tmp_path / "frozen.pt")
    assert frozen.facts.reference == {"Si": 5, "Ge": 3}
    model = tiny_model()
    same, other = (graph_from_atoms(sige(s), TINY.cutoff) for s in ("Si5Ge3", "Si7Ge"))
    torch.testing.assert_close(frozen.evaluate(same).energies, model(same))
    expected = model(other._replace(composition=same.composition))
    torch.testing.assert_close(frozen.evaluate(other).energies, expected)
    assert (model(other) - expected).abs().max() > 1e-4
    pure = ExportOptions(composition="frozen", structure=bulk("Si", "diamond", 5.43), backends=())
    export(tiny_checkpoint, tmp_path / "pure.pt", pure)
    with pytest.raises(UserError, match="element Ge: the frozen composition holds Si only"):
        artifact.load(tmp_path / "pure.pt").evaluate(same)


def test_what_cannot_be_exported_says_why(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.pt"
    with pytest.raises(UserError, match="needs --structure"):
        export(tiny_checkpoint, out, ExportOptions(composition="frozen"))
    with pytest.raises(UserError, match="--structure holds C, the model knows Si, Ge only"):
        export(tiny_checkpoint, out, ExportOptions(composition="frozen", structure=bulk("C")))
    bare = tmp_path / "bare.ckpt"
    checkpoint.save(bare, tiny_model(dataclasses.replace(TINY, composition=None)), {})
    with pytest.raises(UserError, match="nothing to freeze"):
        export(bare, out, ExportOptions(composition="frozen", structure=sige()))
    broken = tiny_model()
    broken.head.layers[0].weight[0, 0] = float("nan")
    checkpoint.save(tmp_path / "nan.ckpt", broken, {})
    with pytest.raises(UserError, match="NaN or infinity in head"):
        export(tmp_path / "nan.ckpt", out, ExportOptions(backends=()))
    assert not out.exists()


def test_without_a_compiler_the_portable_form_is_left(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    lines: list[str] = []
    made = export(tiny_checkpoint, tmp_path / "x.pt", ExportOptions(), lines.append)
    assert set(made.payloads) == {"torchscript"}
    assert any("aoti left out: no C++ compiler" in line for line in (*lines, *made.metadata.facts.policies))
    assert artifact.load(tmp_path / "x.pt").backend == "torchscript"


def test_lean_forms_need_less_memory_and_give_the_same(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """By the shapes in the graph; that the numbers are the same is checked before there is a file."""
    found = {}
    for lean in (False, True):
        options = ExportOptions(backends=("torchscript",), lean=lean)
        (info,) = export(tiny_checkpoint, tmp_path / f"{lean}.pt", options).metadata.payloads
        assert info.details["lean"] is lean
        found[lean] = info.details["bytes_per_edge"]
    assert found[True] < 0.6 * found[False]


def test_embeddings_on_request(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The compiled form returns what each stream has computed, and energies and forces no different for it."""
    options = ExportOptions(backends=("torchscript",), embeddings=True)
    export(tiny_checkpoint, tmp_path / "x.pt", options)
    graph = graph_from_atoms(sige(), TINY.cutoff)
    compiled, model = artifact.load(tmp_path / "x.pt", "torchscript"), tiny_model()
    found, expected = compiled.embeddings(graph), model.embeddings(graph)
    assert list(found) == ["composition", "structure", "interaction"]
    for name, features in expected.items():
        torch.testing.assert_close(found[name], features, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(compiled.evaluate(graph).energies, model(graph), rtol=1e-12, atol=1e-12)


def test_embeddings_nobody_asked_for(compiled_artifact: Path) -> None:
    graph = graph_from_atoms(sige(), TINY.cutoff)
    with pytest.raises(UserError, match="export again with --embeddings"):
        artifact.load(compiled_artifact, "torchscript").embeddings(graph)
    assert artifact.load(compiled_artifact, "eager").embeddings(graph)["interaction"].shape == (8, 16)


def test_a_payload_for_another_machine_is_not_used_but_said(compiled_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triforces_deploy.payloads.aoti.cpu_flags", set)
    monkeypatch.setenv("PATH", "")  # nor can it be compiled anew
    potential = artifact.load(compiled_artifact)
    assert potential.backend == "torchscript"
    assert "aoti not used: compiled for linux-x86_64-v3, this CPU lacks abm" in potential.notes[0]
    assert "no C++ compiler" in potential.notes[0]
    monkeypatch.setattr("torch.__version__", "9.9.9")
    potential = artifact.load(compiled_artifact)
    assert potential.backend == "torchscript (rebuilt here)"
    assert "made with torch" in potential.notes[1]
    with pytest.raises(UserError, match=r"made with torch .* here is 9.9.9"):
        artifact.load(compiled_artifact, "aoti")


def test_kernels_that_are_asked_for_by_name_choose_the_form_that_has_them(
    compiled_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "own, compiled into the torchscript form"
    assert artifact.load(compiled_artifact, "torchscript").kernels == line
    monkeypatch.setenv("TFDEPLOY_KERNELS", "cuequivariance")
    said = artifact.load(compiled_artifact, "torchscript").kernels
    assert said == f"{line}; TFDEPLOY_KERNELS=cuequivariance acts on the eager form alone"
    with pytest.raises(UserError, match="cuEquivariance has no part in this backbone"):  # which only the eager form asks
        artifact.load(compiled_artifact)


def test_the_loader_leaves_nothing_behind(compiled_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    potential = artifact.load(compiled_artifact, "aoti")
    assert [p for p in tmp_path.iterdir() if "tfdeploy" in p.name or "aot" in p.name] == []
    assert torch.isfinite(potential.evaluate(graph_from_atoms(sige(), TINY.cutoff)).energies).all()


def test_the_example_tells_all_sizes_apart() -> None:
    graph = capture.example_graph(tiny_model())
    sizes = [graph.numbers.shape[0], graph.edge_vector.shape[0], graph.composition.shape[0]]
    assert len(set(sizes)) == 3
    assert min(sizes) > 1


@pytest.mark.parametrize(
    ("precision", "own_rounding", "allowed"),
    [
        ("float32", 0.0, 1e-5),
        ("float32", 3e-5, 4e-5),
        ("float32", 4e-4, 5e-5),
        ("float32", math.nan, 1e-5),
        ("float64", 1e-3, 1e-10),
    ],
)
def test_a_form_may_differ_by_eagers_own_rounding_too_up_to_a_bound(
    precision: str, own_rounding: float, allowed: float
) -> None:
    assert tolerance(precision, own_rounding) == pytest.approx(allowed)
    for factor in (0.99, 1.01):
        rows = [Deviation(quantity, "a", 2, factor * allowed * 3.0, 3.0) for quantity in QUANTITIES]
        result = parity("aoti", f"eager {precision}", rows, tolerance(precision, own_rounding))
        with nullcontext() if factor < 1 else pytest.raises(UserError, match="aoti differs from eager"):
            check(result)
