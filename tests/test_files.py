"""Checkpoints and artifacts: what goes in comes out, and nothing damaged gets through."""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from ase.build import bulk

from tests.tiny import tiny_model
from triforces_deploy import artifact, checkpoint
from triforces_deploy.errors import UserError
from triforces_deploy.files import replacing
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.unified import Unified

GRAPH = graph_from_atoms(bulk("Si", "diamond", 5.3, cubic=True), 4.0)


def test_a_checkpoint_gives_back_the_model(tiny_checkpoint: Path) -> None:
    model, provenance = checkpoint.load(tiny_checkpoint)
    assert provenance["data"] == "random weights"
    assert torch.equal(model(GRAPH), tiny_model()(GRAPH))


def test_an_artifact_needs_no_pickled_code(tiny_artifact: Path) -> None:
    assert torch.serialization.get_unsafe_globals_in_checkpoint(tiny_artifact) == ["triforces_deploy.unified.Unified"]


def test_lammps_own_way_of_loading_gives_a_unified_object(tiny_artifact: Path) -> None:
    model = torch.load(tiny_artifact, weights_only=False)
    assert (model.element_types, model.rcutfac, model.ndescriptors, model.nparams) == (["Si", "Ge"], 2.0, 1, 1)


def test_the_file_names_no_folder_of_the_machine_that_made_it(tiny_artifact: Path) -> None:
    assert str(tiny_artifact.parent).encode() not in tiny_artifact.read_bytes()


@pytest.mark.parametrize("read", [checkpoint.load, artifact.load])
def test_files_that_are_not_ours(read: object, tmp_path: Path) -> None:
    for name, content, message in [
        ("text.pt", b"hello", "not an? |damaged"),
        ("words.pt", b"trunc", "not an? |damaged"),
        ("empty.pt", b"", "is empty"),
        ("folder", None, "is a folder"),
        ("missing", None, "does not exist"),
    ]:
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        elif name == "folder":
            path.mkdir()
        with pytest.raises(UserError, match=message):
            read(path)  # type: ignore[operator]


def test_one_kind_given_for_the_other(tiny_checkpoint: Path, tiny_artifact: Path) -> None:
    with pytest.raises(UserError, match="is a checkpoint; turn it into an artifact with `tfdeploy export"):
        artifact.load(tiny_checkpoint)
    with pytest.raises(UserError, match=r"is an artifact, not a checkpoint of ours; give the .ckpt file"):
        checkpoint.load(tiny_artifact)


def test_someone_elses_pickle_is_not_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {tmp_path}/executed",)

    torch.save(Evil(), tmp_path / "evil.pt")
    for read in (artifact.load, checkpoint.load):
        with pytest.raises(UserError):
            read(tmp_path / "evil.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_truncated_files(tiny_artifact: Path, tiny_checkpoint: Path, tmp_path: Path, keep: float) -> None:
    for source, read in ((tiny_artifact, artifact.load), (tiny_checkpoint, checkpoint.load)):
        content = source.read_bytes()
        path = tmp_path / source.name
        path.write_bytes(content[: int(keep * len(content))])
        with pytest.raises(UserError, match="damaged"):
            read(path)


def test_flipped_bits_never_give_a_wrong_number(tiny_artifact: Path, tmp_path: Path) -> None:
    """An error, or the same energies: bits of padding do not matter."""
    rng, path = random.Random(0), tmp_path / "flipped.pt"
    content, reference = tiny_artifact.read_bytes(), artifact.load(tiny_artifact).evaluate(GRAPH)
    caught = 0
    for _ in range(150):
        damaged = bytearray(content)
        damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            energies = artifact.load(path).evaluate(GRAPH).energies
        except UserError:
            caught += 1
        else:
            assert torch.equal(energies, reference.energies)
    assert caught > 50


def test_a_changed_weight_is_noticed_even_in_a_valid_file(tiny_artifact: Path, tmp_path: Path) -> None:
    state = torch.load(tiny_artifact, weights_only=False).state
    state["weights"]["scale"] += 1e-6
    torch.save(Unified(state), tmp_path / "changed.pt")
    with pytest.raises(UserError, match="does not match its own hashes"):
        artifact.load(tmp_path / "changed.pt")


def test_newer_formats_are_named(tiny_checkpoint: Path, tiny_artifact: Path, tmp_path: Path) -> None:
    content = torch.load(tiny_checkpoint, weights_only=True)
    torch.save({**content, "format": 99}, tmp_path / "new.ckpt")
    with pytest.raises(UserError, match=r"format 99.*update triforces-deploy"):
        checkpoint.load(tmp_path / "new.ckpt")
    state = torch.load(tiny_artifact, weights_only=False).state
    torch.save(Unified({**state, "format": 99}), tmp_path / "new.pt")
    with pytest.raises(UserError, match=r"format 99.*update triforces-deploy"):
        artifact.load(tmp_path / "new.pt")


def test_a_configuration_that_does_not_fit_its_weights(tiny_checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(tiny_checkpoint, weights_only=True)
    config = json.loads(content["config"])
    config["head_hidden"] = [25]
    del content["sha256"]
    torch.save({**content, "config": json.dumps(config)}, tmp_path / "odd.ckpt")
    with pytest.raises(UserError, match="do not fit"):
        checkpoint.load(tmp_path / "odd.ckpt")


def test_a_zip_that_is_no_torch_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("x", "y")
    with pytest.raises(UserError):
        artifact.load(tmp_path / "a.pt")


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def stopped() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on file size fails a write the way a full disk does."""
    program = """
import resource, signal, sys
from pathlib import Path
from tests.tiny import tiny_model
from triforces_deploy import checkpoint
from triforces_deploy.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    checkpoint.save(Path(sys.argv[1]) / "x.ckpt", tiny_model(), {})
except UserError as error:
    print(error)
"""
    assert resource.RLIMIT_FSIZE is not None
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert "cannot write" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="choose a folder that exists"):
        checkpoint.save(tmp_path / "no" / "x.ckpt", tiny_model(), {})


FORMATS = Path(__file__).parent / "fixtures" / "formats"


@pytest.mark.parametrize("path", sorted([*FORMATS.glob("*.ckpt"), *FORMATS.glob("*.pt")]), ids=lambda p: p.name)
def test_files_of_every_format_still_give_their_energy(path: Path) -> None:
    atoms = bulk("Si", "diamond", 5.43, cubic=True)
    atoms.symbols[0] = "Ge"
    atoms.positions[0] += 0.1
    graph = graph_from_atoms(atoms, 4.0)
    if path.suffix == ".ckpt":
        energy = float(checkpoint.load(path)[0](graph).sum())
    else:
        energy = float(artifact.load(path).evaluate(graph).energies.sum())
    (expected,) = json.loads((FORMATS / "energy.json").read_text()).values()
    assert energy == pytest.approx(expected, abs=1e-10)


def test_the_present_formats_have_their_files() -> None:
    names = {p.name for p in FORMATS.iterdir()}
    assert {f"checkpoint-{checkpoint.FORMAT}.ckpt", f"artifact-{artifact.FORMAT}.pt"} <= names
