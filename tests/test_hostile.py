"""Files made to do harm, and files that merely have the wrong name: each its own line, none of them executed."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import pickle
import resource
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import bulk

from tests.tiny import TINY
from triforces_deploy import artifact, checkpoint
from triforces_deploy.config import as_dict
from triforces_deploy.contents import hash_weights
from triforces_deploy.errors import UserError
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.unified import Unified

GRAPH = graph_from_atoms(bulk("Si", "diamond", 5.3, cubic=True), 4.0)


def rezip(source: Path, target: Path, change: Callable[[dict[str, bytes]], None], method: int = zipfile.ZIP_STORED) -> Path:
    """The same archive with changed entries and right checksums."""
    with zipfile.ZipFile(source) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return target


def forge(source: Path, target: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    """An artifact whose own hashes are right, whatever was changed in its state and metadata."""
    state = torch.load(source, weights_only=False).state
    metadata = json.loads(state["metadata"])
    change(state, metadata)
    metadata["weights_sha256"] = hash_weights(state["weights"])
    state["metadata"] = json.dumps(metadata)
    state["metadata_sha256"] = hashlib.sha256(state["metadata"].encode()).hexdigest()
    torch.save(Unified(state), target)
    return target


def of(entries: dict[str, bytes], suffix: str) -> str:
    return next(name for name in entries if name.endswith(suffix))


def test_a_rewritten_but_equal_archive_is_read(tiny_artifact: Path, tmp_path: Path) -> None:
    """The helpers of this file make readable files, so that what they are refused for below is what was changed."""
    expected = artifact.load(tiny_artifact).evaluate(GRAPH).energies
    same = rezip(tiny_artifact, tmp_path / "same.pt", lambda _entries: None)
    assert torch.equal(artifact.load(same).evaluate(GRAPH).energies, expected)
    forged = forge(tiny_artifact, tmp_path / "forged.pt", lambda _state, _metadata: None)
    assert torch.equal(artifact.load(forged).evaluate(GRAPH).energies, expected)


@pytest.mark.parametrize("read", [checkpoint.load, artifact.load])
def test_other_formats_are_called_by_their_name(read: Callable[[Path], object], tmp_path: Path) -> None:
    def tar(path: Path) -> None:
        with tarfile.open(path, "w") as archive:
            archive.addfile(tarfile.TarInfo("x"), io.BytesIO())

    def plain_zip(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x", "y")

    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    def program(path: Path) -> None:
        torch.export.save(torch.export.export(Twice(), (torch.ones(2),)), path)

    makers: dict[str, tuple[Callable[[Path], object], str]] = {
        "a.npy": (lambda p: np.save(p, np.ones(3)), "is a NumPy array"),
        "a.npz": (lambda p: np.savez(p, a=np.ones(3)), "is a collection of NumPy arrays"),
        "a.pkl": (lambda p: p.write_bytes(pickle.dumps({"a": 1})), "is a bare pickle"),
        "a.tar": (tar, "is a tar archive"),
        "a.zip": (plain_zip, "is a zip archive that torch has not written"),
        "a.json": (lambda p: p.write_text('{"a": 1}'), "is text in JSON"),
        "a.onnx": (lambda p: p.write_bytes(b"\x08\x0a\x12\x07pytorch"), "is an ONNX model"),
        "onnx.pt": (lambda p: p.write_bytes(b"\x08\x0a\x12\x07pytorch"), "is an ONNX model"),
        "a.pt2": (program, "is a torch.export program or AOTInductor package"),
        "state.pt": (lambda p: torch.save({"a": torch.ones(2)}, p), "not an? .* of ours"),
        "list.pt": (lambda p: torch.save([1, 2], p), "not an? .* of ours"),
        "module.pt": (lambda p: torch.save(torch.nn.Linear(2, 2), p), r"not a file of ours \(names torch.nn"),
    }
    for name, (make, message) in makers.items():
        make(tmp_path / name)
        with pytest.raises(UserError, match=message) as caught:
            read(tmp_path / name)
        assert "written by `tfdeploy" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_torchscript_is_called_by_its_name(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match=r"torch.jit"):
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "a.pt")
    with pytest.raises(UserError, match="is a TorchScript program"):
        artifact.load(tmp_path / "a.pt")


def test_compressed_archives_are_refused_unread(tiny_artifact: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A bomb: one entry of 256 MiB of zeros that takes a quarter of one in the file."""

    def bomb(entries: dict[str, bytes]) -> None:
        entries[of(entries, "data/0")] = bytes(1 << 28)

    for source, read in ((tiny_artifact, artifact.load), (tiny_checkpoint, checkpoint.load)):
        path = rezip(source, tmp_path / "bomb.pt", bomb, zipfile.ZIP_DEFLATED)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(UserError, match="damaged"):
            read(path)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_sizes_that_the_directory_only_claims(tiny_artifact: Path, tmp_path: Path) -> None:
    content = bytearray(tiny_artifact.read_bytes())
    at = content.rfind(b"PK\x01\x02")
    for offset in (20, 24):
        content[at + offset : at + offset + 4] = (1 << 31).to_bytes(4, "little")
    path = tmp_path / "claims.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        artifact.load(path)


@pytest.mark.parametrize("name", ["twice", "../../outside", "/etc/outside"])
def test_entries_that_torch_never_writes(tiny_artifact: Path, tmp_path: Path, name: str) -> None:
    def add(entries: dict[str, bytes]) -> None:
        root = of(entries, "data.pkl").partition("/")[0]
        entries[name if "outside" in name else f"{root}/x"] = b"content"

    path = rezip(tiny_artifact, tmp_path / "odd.pt", add)
    if name == "twice":
        with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
            archive.writestr(of(dict.fromkeys(archive.namelist(), b""), "data/1"), b"other")
    with pytest.raises(UserError, match="damaged"):
        artifact.load(path)


@pytest.mark.parametrize("where", ["before", "behind"])
def test_bytes_around_the_archive(tiny_artifact: Path, tmp_path: Path, where: str) -> None:
    """Two readers could see two archives in such a file."""
    content, path = tiny_artifact.read_bytes(), tmp_path / "around.pt"
    path.write_bytes(b"PK" + bytes(98) + content if where == "before" else content + bytes(100))
    with pytest.raises(UserError, match="damaged"):
        artifact.load(path)


def test_a_tensor_larger_than_its_numbers(tmp_path: Path) -> None:
    """Terabytes from eight bytes: torch's own reader expands such a tensor, and reads beyond a storage that is too short."""
    one = torch.ones(1, dtype=torch.float64)
    torch.save({"kind": checkpoint.KIND, "state": {"w": one.expand(1 << 40)}}, tmp_path / "expanded.ckpt")
    with pytest.raises(UserError, match="larger than its numbers"):
        checkpoint.load(tmp_path / "expanded.ckpt")

    def shorten(entries: dict[str, bytes]) -> None:
        entries[of(entries, "data/0")] = b"12345678"

    torch.save({"kind": checkpoint.KIND, "state": {"w": torch.ones(100, dtype=torch.float64)}}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(rezip(tmp_path / "a.ckpt", tmp_path / "short.ckpt", shorten))


@pytest.mark.parametrize(
    "code",
    [
        b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
        b"\x80\x02ctorch\nload\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"\x80\x02(X\x04\x00\x00\x00trueios\nsystem\n.",
        b"\x80\x02\x82\x01.",
        b"\x80\x05\x96\x00\x00\x00\x00\x00\x01\x00\x00.",
        b"\x80\x02K\x01r\xff\xff\xff\x7f.",
        b"\x80\x02" + b"]" * 100_000 + b".",
        b"\x80\x02}K\x01K\x02s.",
        b"\x80\x02K\x01(N.",
        b"",
    ],
)
def test_pickles_that_ask_for_more_than_data(tiny_artifact: Path, tmp_path: Path, code: bytes) -> None:
    def put(entries: dict[str, bytes]) -> None:
        entries[of(entries, "data.pkl")] = code

    with pytest.raises(UserError, match=r"not a file of ours|not an artifact of ours|damaged"):
        artifact.load(rezip(tiny_artifact, tmp_path / "code.pt", put))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("metadata", 3),
        ("metadata", None),
        ("metadata_sha256", 3),
        ("format", "2"),
        ("format", True),
        ("format", -1),
        ("format", 0),
        ("weights", [1]),
        ("weights", {"a": 1}),
        ("payloads", {"aoti": "text"}),
        ("element_types", ["C"]),
        ("cutoff", 5.0),
    ],
)
def test_wrong_things_in_the_state(tiny_artifact: Path, tmp_path: Path, field: str, value: object) -> None:
    state = torch.load(tiny_artifact, weights_only=False).state
    for changed in ({**state, field: value}, {k: v for k, v in state.items() if k != field}):
        unified = Unified.__new__(Unified)
        unified.state = changed
        torch.save(unified, tmp_path / "odd.pt")
        with pytest.raises(UserError, match="damaged"):
            artifact.load(tmp_path / "odd.pt")


def test_lammps_own_way_of_loading_checks_the_same(tiny_artifact: Path, tmp_path: Path) -> None:
    state = torch.load(tiny_artifact, weights_only=False).state
    torch.save(Unified({**state, "cutoff": 5.0}), tmp_path / "odd.pt")
    model = torch.load(tmp_path / "odd.pt", weights_only=False)
    with pytest.raises(UserError, match="damaged"):
        artifact.potential_from_state(model.state, "odd")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"cutoff": 5.0}}, "cutoff are not those"),
        ({"config": {"cutoff": 1e9}, "facts": {"cutoff": 1e9}}, "do not fit"),
        ({"facts": {"elements": ["Si", "C"]}}, "damaged"),
        ({"facts": {"n_exchanges": 1, "exchange_widths": []}}, "n_exchanges is not that"),
        ({"facts": {"exchange_widths": [16]}}, "exchange_widths are not those"),
        ({"facts": {"receptive_field": 1.0}}, "receptive_field is not that"),
        ({"facts": {"precision": "float8"}}, "precision are not those"),
        ({"facts": {"reference": {"Si": float("nan")}}}, "reference are not those"),
        ({"config": {"head_hidden": [1 << 40]}}, "do not fit"),
        ({"config": {"head_hidden": [10]}}, "do not fit"),
        ({"config": {"composition": {"layers": 1 << 40}}}, "do not fit"),
        ({"config": {"backbone": {"name": "orb_v3", "options": {"n_layers": 10**12}}}}, "do not fit"),
        ({"config": {"cutoff": 10**400}}, "expected float|damaged|do not fit"),
        ({"created": {"a": 1}}, "created: expected str"),
        ({"surprise": 1}, "unknown key"),
    ],
)
def test_forged_files_ask_for_nothing_absurd(tiny_artifact: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    def merge(into: dict[str, Any], new: dict[str, Any]) -> None:
        for key, value in new.items():
            if isinstance(value, dict) and isinstance(into.get(key), dict) and key != "backbone":
                merge(into[key], value)
            else:
                into[key] = value

    def apply(state: dict[str, Any], metadata: dict[str, Any]) -> None:
        merge(metadata, change)
        if change.get("facts", {}).get("cutoff"):
            state["cutoff"] = change["facts"]["cutoff"]

    path = forge(tiny_artifact, tmp_path / "forged.pt", apply)
    with pytest.raises(UserError, match=message):
        artifact.load(path)


def test_deeply_nested_metadata(tiny_artifact: Path, tmp_path: Path) -> None:
    state = torch.load(tiny_artifact, weights_only=False).state
    state["metadata"] = "[" * 1_000_000
    state["metadata_sha256"] = hashlib.sha256(state["metadata"].encode()).hexdigest()
    torch.save(Unified(state), tmp_path / "deep.pt")
    with pytest.raises(UserError, match="RecursionError"):
        artifact.load(tmp_path / "deep.pt")


def test_weights_that_are_not_numbers(tiny_artifact: Path, tmp_path: Path) -> None:
    path = forge(tiny_artifact, tmp_path / "nan.pt", lambda state, _m: state["weights"]["scale"].fill_(float("nan")))
    with pytest.raises(UserError, match="NaN or infinity in scale"):
        artifact.load(path)


def test_a_checkpoint_that_was_changed_with_care(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Right checksums of the archive do not help: two storages exchanged are noticed by the file's own digest."""

    def exchange(entries: dict[str, bytes]) -> None:
        same = [n for n in entries if "/data/" in n and len(entries[n]) == 128]
        first, second = next((a, b) for a in same for b in same if entries[a] != entries[b])
        entries[first], entries[second] = entries[second], entries[first]

    with pytest.raises(UserError, match="does not match its own hash"):
        checkpoint.load(rezip(tiny_checkpoint, tmp_path / "x.ckpt", exchange))


def test_a_checkpoint_that_asks_for_terabytes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(tiny_checkpoint, weights_only=True)
    del content["sha256"]
    config = as_dict(dataclasses.replace(TINY, head_hidden=(1 << 50,)))
    torch.save({**content, "config": json.dumps(config)}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="do not fit"):
        checkpoint.load(tmp_path / "x.ckpt")
