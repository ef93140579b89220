"""Compiled code is opened only from files that were made here or that the user trusts; else it is made anew from the model."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ase.build import bulk

from tests.tiny import TINY, tiny_model
from triforces_deploy import artifact, checkpoint, local_builds, trust
from triforces_deploy.artifact import read_artifact
from triforces_deploy.config import BackboneConfig, StructureConfig
from triforces_deploy.contents import sha256
from triforces_deploy.errors import UserError
from triforces_deploy.export.exporting import ExportOptions, export
from triforces_deploy.export.rebuilding import re_export, unpack
from triforces_deploy.graph import Graph
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.payloads.base import Payload, PayloadInfo, UnusableError
from triforces_deploy.payloads.table import backend

GRAPH = graph_from_atoms(bulk("Si", "diamond", 5.3, cubic=True), 4.0)
TFDEPLOY = str(Path(sys.executable).with_name("tfdeploy"))
REBUILT = "torchscript (rebuilt here)"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([TFDEPLOY, *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with two kinds of code that are quick to make."""
    folder = tmp_path_factory.mktemp("scripted")
    backbone = BackboneConfig("orb_v3", {"latent": 4, "n_layers": 1, "mlp_hidden": 6, "n_bessel": 2, "l_max": 1})
    streams = {"composition": None, "structure": StructureConfig(4, 6, n_radial=2, n_channels=2, l_max=1, layers=1)}
    model = tiny_model(dataclasses.replace(TINY, backbone=backbone, zbl=False, **streams))  # type: ignore[arg-type]
    checkpoint.save(folder / "small.ckpt", model, {})
    export(folder / "small.ckpt", folder / "scripted.pt", ExportOptions(backends=("torchscript", "export")))
    return folder / "scripted.pt"


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The account of somebody who has made nothing yet."""
    home = tmp_path / "home"
    monkeypatch.setenv("TFDEPLOY_HOME", str(home))
    return home


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch, scripted: Path) -> list[str]:
    """Counts what is rebuilt; the result is the file's own payload, whose compilation other tests have seen."""
    done: list[str] = []
    original = read_artifact(scripted)

    def quick(_artifact: artifact.Artifact, backend: str, _device: torch.device) -> Payload:
        done.append(backend)
        info = next(info for info in original.metadata.payloads if info.backend == backend)
        return Payload(info, original.payloads[backend])

    monkeypatch.setattr(local_builds, "_compile", quick)
    return done


def test_what_was_made_here_runs_here(scripted: Path) -> None:
    potential = artifact.load(scripted)
    assert potential.backend == "torchscript"
    assert not any("rebuilt" in note for note in potential.notes)


def test_code_of_a_stranger_is_never_opened(
    scripted: Path, stranger: Path, compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes of the file never reach torch's loaders."""
    content = read_artifact(scripted).payloads["torchscript"]
    changed = read_artifact(scripted)
    evil = dataclasses.replace(changed, payloads={**changed.payloads, "torchscript": content + b"evil"})
    infos = [dataclasses.replace(info, sha256=sha256(evil.payloads[info.backend])) for info in evil.metadata.payloads]
    evil = dataclasses.replace(evil, metadata=dataclasses.replace(evil.metadata, payloads=tuple(infos)))
    artifact.write(stranger.with_name("evil.pt"), evil)
    opened: list[bytes] = []
    load = torch.jit.load
    monkeypatch.setattr(
        "torch.jit.load", lambda buffer, **options: (opened.append(buffer.getvalue()), load(buffer, **options))[1]
    )
    potential = artifact.load(stranger.with_name("evil.pt"))
    assert potential.backend == REBUILT
    assert opened == [content]
    with pytest.raises(UserError, match="no aoti payload"):
        artifact.load(stranger.with_name("evil.pt"), "aoti")


def test_a_rebuilt_form_equals_eager_and_is_kept(
    scripted: Path, stranger: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real compilation, once."""
    first = artifact.load(scripted)
    assert first.backend == REBUILT
    assert "rebuilt here from the file's model: it was not made here" in first.notes[-1]
    assert "tfdeploy trust" in first.notes[-1]
    line = capfd.readouterr().err
    assert "not made here" in line
    assert "Rebuilding it here, once" in line
    monkeypatch.setattr(local_builds, "_compile", lambda *_: pytest.fail("compiled twice"))
    second = artifact.load(scripted)
    assert second.backend == REBUILT
    assert capfd.readouterr().err == ""
    eager = artifact.load(scripted, "eager").evaluate(GRAPH)
    for potential in (first, second):
        torch.testing.assert_close(potential.evaluate(GRAPH).edge_forces, eager.edge_forces, rtol=1e-11, atol=1e-12)


def test_trust_is_remembered_and_forgotten(scripted: Path, stranger: Path, compilations: list[str]) -> None:
    assert artifact.load(scripted).backend == REBUILT
    assert artifact.load(scripted, trust=True).backend == "torchscript"
    assert artifact.load(scripted).backend == "torchscript"
    assert "scripted.pt" in (stranger / "trusted").read_text()
    assert (stranger / "trusted").stat().st_mode & 0o777 == 0o600
    assert trust.forget(read_artifact(scripted).metadata)
    assert not trust.forget(read_artifact(scripted).metadata)
    assert artifact.load(scripted).backend == REBUILT
    assert compilations == ["torchscript"]


def test_the_command(scripted: Path, tiny_artifact: Path, stranger: Path) -> None:
    metadata = read_artifact(scripted).metadata
    assert "is trusted: its torchscript, export will run" in run("trust", str(scripted)).stdout
    assert trust.is_trusted(metadata)
    assert "trusted no longer" in trust.change(metadata, "x", forgotten=True)
    assert "was not trusted" in trust.change(metadata, "x", forgotten=True)
    assert not trust.is_trusted(metadata)
    assert "holds no code" in trust.change(read_artifact(tiny_artifact).metadata, "x", forgotten=False)


def test_verify_says_whose_code_it_has_compared(scripted: Path, stranger: Path, compilations: list[str]) -> None:
    from triforces_deploy.export.exporting import reverify

    silicon = {"silicon": bulk("Si", "diamond", 5.3)}
    results = reverify(read_artifact(scripted), "scripted", None, silicon)
    assert [r.backend for r in results] == [REBUILT, "export (rebuilt here)"]
    trust.remember(read_artifact(scripted).metadata, "scripted")
    assert [r.backend for r in reverify(read_artifact(scripted), "x", None, silicon)] == ["torchscript", "export"]


def test_batch_jobs_can_trust_everything(scripted: Path, stranger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDEPLOY_TRUST", "1")
    assert artifact.load(scripted).backend == "torchscript"
    assert not stranger.exists()


def test_trust_covers_code_and_weights_but_not_the_certificate(scripted: Path) -> None:
    metadata = read_artifact(scripted).metadata
    first, *rest = metadata.payloads
    for field in (
        {"payloads": (dataclasses.replace(first, sha256="0" * 64), *rest)},
        {"weights_sha256": "0" * 64},
        {"config": dataclasses.replace(metadata.config, cutoff=3.0)},
    ):
        assert trust.key(dataclasses.replace(metadata, **field)) != trust.key(metadata)  # type: ignore[arg-type]
    assert trust.key(dataclasses.replace(metadata, provenance={}, parity=())) == trust.key(metadata)


def test_a_list_that_others_can_write_is_worth_nothing(scripted: Path, stranger: Path) -> None:
    trust.remember(read_artifact(scripted).metadata, "x")
    (stranger / "trusted").chmod(0o666)
    with pytest.raises(UserError, match="can be written by other users; run `chmod go-w"):
        artifact.load(scripted)


def test_a_cache_that_others_can_write_is_not_used(scripted: Path, stranger: Path, compilations: list[str]) -> None:
    artifact.load(scripted)
    (stranger / "payloads").chmod(0o777)
    potential = artifact.load(scripted)
    assert potential.backend == "eager"
    assert any("can be written by other users" in note for note in potential.notes)


def test_a_damaged_cache_is_made_anew(scripted: Path, stranger: Path, compilations: list[str]) -> None:
    artifact.load(scripted)
    (kept,) = [p for p in (stranger / "payloads").iterdir() if p.suffix != ".lock"]
    for damage in (
        lambda content: content[:-1],
        lambda content: content[:5000] + b"?" + content[5001:],
        lambda content: b"{}\n" + content,
        lambda _content: b"",
    ):
        kept.write_bytes(damage(kept.read_bytes()))
        compilations.clear()
        assert artifact.load(scripted).backend == REBUILT
        assert compilations == ["torchscript"]


def test_what_cannot_be_rebuilt_runs_eager_and_says_so(scripted: Path, stranger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_arguments: object) -> Payload:
        raise UnusableError("no C++ compiler")

    monkeypatch.setattr(local_builds, "_compile", refused)
    potential = artifact.load(scripted)
    assert potential.backend == "eager"
    assert any("torchscript not used: it was not made here" in n and "no C++ compiler" in n for n in potential.notes)
    with pytest.raises(UserError, match=r"no C\+\+ compiler; available: torchscript, export, eager"):
        artifact.load(scripted, "torchscript")


def test_a_wrong_rebuild_is_never_kept(scripted: Path, stranger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forces wrong in the eighth digit."""
    from triforces_deploy.export import rebuilding
    from triforces_deploy.model import Model

    right: Callable[..., tuple[torch.Tensor, ...]] = Model.run
    capture = rebuilding.capture

    def slightly_wrong(*arguments: object) -> object:
        with monkeypatch.context() as patch:
            patch.setattr(Model, "run", lambda *a: (right(*a)[0], right(*a)[1] * (1 + 1e-8)))
            return capture(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(rebuilding, "capture", slightly_wrong)
    potential = artifact.load(scripted)
    assert potential.backend == "eager"
    assert any("forces by 1.00e-08" in note for note in potential.notes)
    assert [p for p in (stranger / "payloads").iterdir() if p.suffix != ".lock"] == []


def test_of_several_processes_one_compiles(scripted: Path, stranger: Path) -> None:
    """As the ranks of one LAMMPS run do."""
    program = """
import sys, time
from triforces_deploy import artifact, local_builds
make = local_builds._compile
def slowly(made, backend, device):
    print("compiled", flush=True)
    time.sleep(1)
    info = next(info for info in made.metadata.payloads if info.backend == backend)
    return local_builds.Payload(info, made.payloads[backend])
local_builds._compile = slowly
assert artifact.load(sys.argv[1]).backend == "torchscript (rebuilt here)"
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, str(scripted)]
    ranks = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert sorted(said) == ["", "compiled\n"]


def test_the_exported_program_gives_the_same_numbers(scripted: Path) -> None:
    eager, program = artifact.load(scripted, "eager").evaluate(GRAPH), artifact.load(scripted, "export").evaluate(GRAPH)
    torch.testing.assert_close(eager.energies, program.energies, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(eager.edge_forces, program.edge_forces, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("trusted", [True, False])
def test_a_rebuilt_export_is_bit_identical_in_numbers(
    scripted: Path, tmp_path: Path, trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the program in a trusted file, and from the model in any."""
    if not trusted:
        monkeypatch.setenv("TFDEPLOY_HOME", str(tmp_path / "home"))
    lines: list[str] = []
    re_export(scripted, tmp_path / "new.pt", ExportOptions(backends=("torchscript",)), lines.append)
    assert ("reading the program in the file" in lines) is trusted
    monkeypatch.setenv("TFDEPLOY_TRUST", "1")
    old, new = artifact.load(scripted, "torchscript").evaluate(GRAPH), artifact.load(tmp_path / "new.pt").evaluate(GRAPH)
    assert torch.equal(old.energies, new.energies)
    assert torch.equal(old.edge_forces, new.edge_forces)
    before, after = read_artifact(scripted), read_artifact(tmp_path / "new.pt")
    assert list(after.payloads) == ["torchscript"]
    assert after.metadata.weights_sha256 == before.metadata.weights_sha256
    assert after.metadata.provenance == before.metadata.provenance
    assert after.metadata.facts.policies == before.metadata.facts.policies
    assert {row.backend for row in after.metadata.parity} == {"torchscript", "eager"}


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="--device cuda: torch sees no GPU here"):
        export(tmp_path / "any.ckpt", tmp_path / "x.pt", ExportOptions(device="cuda"))


def test_an_artifact_is_a_source_on_the_command_line(scripted: Path, tmp_path: Path) -> None:
    done = run("export", str(scripted), "--to", "eager", "-o", str(tmp_path / "bare.pt"))
    assert done.returncode == 0, done.stderr
    assert torch.equal(
        artifact.load(tmp_path / "bare.pt").evaluate(GRAPH).energies, artifact.load(scripted, "eager").evaluate(GRAPH).energies
    )


def test_what_an_artifact_has_decided_stays_decided(scripted: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="artifact of precision float64; export its checkpoint"):
        re_export(scripted, tmp_path / "x.pt", ExportOptions(precision="float32"))
    with pytest.raises(UserError, match="policies are frozen"):
        re_export(scripted, tmp_path / "x.pt", ExportOptions(composition="frozen", structure=bulk("Si")))


@pytest.mark.parametrize("form", ["torchscript", "export"])
def test_a_form_for_any_device_makes_all_its_tensors_there(scripted: Path, form: str) -> None:
    """On torch's device without memory, where a tensor left on the CPU is an error."""
    made, meta = read_artifact(scripted), torch.device("meta")
    info = next(info for info in made.metadata.payloads if info.backend == form)
    run = backend(form).open(info, made.payloads[form], meta)
    with torch.jit.optimized_execution(False):  # which would compare constants by their values
        results = run(Graph(*(t.to(meta) for t in GRAPH)))
    assert [(t.shape, t.device) for t in results[:2]] == [(GRAPH.numbers.shape, meta), (GRAPH.edge_vector.shape, meta)]


def test_a_payload_as_a_plain_file(scripted: Path, tmp_path: Path) -> None:
    done = run("unpack", str(scripted), "onnx", "-o", str(tmp_path / "x"))
    assert (done.returncode, "holds no onnx; it holds torchscript, export" in done.stderr) == (2, True)
    assert "export for any, float64" in unpack(read_artifact(scripted), "x", "export", tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2")
    assert len(program.graph_signature.user_inputs) == 6


def info(**fields: object) -> PayloadInfo:
    given = {"backend": "aoti", "precision": "float64", "target": "linux-x86_64-v3", "torch": torch.__version__, "sha256": ""}
    return PayloadInfo(**{**given, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "trusted", "action", "reason"),
    [
        ({}, True, "run", ""),
        ({}, False, "rebuild", "not made here"),
        ({"backend": "torchscript", "target": "any"}, True, "run", ""),
        ({"torch": "2.12.1"}, True, "rebuild", "made with torch 2.12.1, here is"),
        ({"torch": torch.__version__.split("+")[0] + "+cu999"}, True, "run", ""),
        ({"target": "darwin-arm64"}, True, "rebuild", "compiled for darwin-arm64, this machine is linux-x86_64"),
        ({"target": "linux-x86_64-native", "details": {"cpu_flags": ["avx", "avx9"]}}, True, "rebuild", "this CPU lacks avx9"),
        ({"target": "linux-x86_64-native", "details": {"cpu_flags": ["avx", "avx2"]}}, True, "run", ""),
        ({"target": "linux-x86_64"}, True, "rebuild", "without a list of the CPU features"),
        ({"target": "linux-x86_64-cuda-sm_90"}, True, "rebuild", "compiled for a GPU, here is none"),
        ({"backend": "quantum"}, True, "leave out", "update triforces-deploy"),
    ],
)
def test_verdicts(fields: dict[str, object], trusted: bool, action: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from triforces_deploy.payloads.aoti import X86_64_V3
    from triforces_deploy.verdicts import judge

    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("triforces_deploy.payloads.aoti.cpu_flags", lambda: set(X86_64_V3))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    verdict = judge(info(**fields), trusted)
    assert verdict.action == action
    assert reason in verdict.reason


def test_a_cpu_without_avx2_is_never_given_avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    from triforces_deploy.payloads.aoti import X86_64_V3, target
    from triforces_deploy.verdicts import judge

    monkeypatch.setattr("triforces_deploy.payloads.aoti.cpu_flags", lambda: set(X86_64_V3) - {"avx2"})
    verdict = judge(info(), trusted=True)
    assert (verdict.action, "lacks avx2" in verdict.reason) == ("rebuild", True)
    assert target().endswith("-native")


def test_gpus_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    from triforces_deploy.verdicts import judge

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    assert judge(info(target="linux-x86_64-cuda-sm_90"), trusted=True).action == "run"
    assert "GPU of kind sm_80, here is sm_90" in judge(info(target="linux-x86_64-cuda-sm_80"), trusted=True).reason


def test_a_native_package_names_what_the_compiler_uses() -> None:
    """And nothing that concerns the kernel alone."""
    from triforces_deploy.export.backends.aoti import native_flags
    from triforces_deploy.payloads.aoti import X86_64_V3, cpu_flags

    flags = set(native_flags())
    assert flags <= cpu_flags()
    assert X86_64_V3 - {"movbe"} <= flags
    assert not flags & {"hypervisor", "constant_tsc", "syscall", "smep"}
