"""Reading what ``torch.save`` wrote, as from a stranger: the archive is checked as a whole before anything in it is used."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triforces_deploy.errors import UserError
from triforces_deploy.files import existing, replacing
from triforces_deploy.plain_pickle import PlainPickleError, loads

END = b"PK\x05\x06"
"""Begins the last 22 bytes of an archive without a comment."""
MAX_ENTRIES = 100_000
MAX_PICKLE = 1 << 28
"""Bytes of the file's own description, which holds metadata but no numbers."""
PLAIN_FLAGS = {0, 0x8, 0x800, 0x808}
"""Sizes behind the data, names in UTF-8; anything else is encryption or a patch."""
OTHERS = {
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file",
    b"\x7fELF": "a program or library",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"\x80\x02": "a bare pickle",
    b"\x80\x03": "a bare pickle",
    b"\x80\x04": "a bare pickle",
    b"\x80\x05": "a bare pickle",
    b"{": "text in JSON",
}
"""First bytes → what has them."""


def load(path: Path, what: str, remedy: str, classes: frozenset[str] = frozenset()) -> Any:
    """The content of a file without executing anything in it; see plain_pickle.py.

    Args:
        path: the file.
        what: what is expected, e.g. 'an artifact written by `tfdeploy export`'.
        remedy: what to do about a damaged one.
        classes: of which classes instances may be in it.

    Raises:
        UserError: no such file, another kind of file, damaged, or built to do harm.
    """
    size = existing(path, what).stat().st_size
    with path.open("rb") as stream:
        _refuse_others(path, stream.read(512), size, what)
        try:
            stream.seek(max(0, size - len(END) - 18))
            if stream.read(len(END)) != END:
                raise ValueError("the archive does not end where the file does")
            with zipfile.ZipFile(stream) as archive:
                _refuse_other_archives(path, archive.namelist(), what)
                _refuse_odd_archives(archive, size)
                return _content(archive, classes)
        except PlainPickleError as error:
            raise UserError(f"{path} is not a file of ours ({error}); expected {what}") from error
        except UserError:
            raise
        except Exception as error:  # a damaged archive fails in its own way at every byte
            raise UserError(f"{path} is damaged or truncated; {remedy}") from error


def save(path: Path, content: object) -> None:
    """Write what :func:`load` reads; it appears only when complete. UserError when it cannot."""
    with replacing(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # how torch reports a full disk
            raise UserError(f"cannot write {path}: {str(error).splitlines()[0]}; free some space") from error


def _refuse_others(path: Path, head: bytes, size: int, what: str) -> None:
    if size == 0:
        raise UserError(f"{path} is empty, or was never written to its end; expected {what}")
    if head[:2] == b"PK":
        return
    kind = next((name for magic, name in OTHERS.items() if head.startswith(magic)), None)
    if head[257:262] == b"ustar":
        kind = "a tar archive"
    if path.suffix == ".onnx" or (head[:1] == b"\x08" and b"pytorch" in head):
        kind = "an ONNX model"
    raise UserError(f"{path} is {kind or 'not a file of ours, or is damaged'}; expected {what}")


def _refuse_odd_archives(archive: zipfile.ZipFile, size: int) -> None:
    """ValueError for what ``torch.save`` never writes: compression, overlaps, repeats, paths, or bytes before and behind."""
    entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    names = {entry.filename for entry in entries}
    if not 0 < len(entries) <= MAX_ENTRIES or len(names) != len(entries) or archive.comment:
        raise ValueError("number of entries, or one twice")
    if entries[0].header_offset != 0 or sum(entry.file_size for entry in entries) > size:
        raise ValueError("sizes")
    ends = [*(entry.header_offset for entry in entries[1:]), archive.start_dir]
    for entry, end in zip(entries, ends, strict=True):
        stored = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
        if not stored or entry.flag_bits not in PLAIN_FLAGS:
            raise ValueError("compressed or encrypted")
        if entry.header_offset + 30 + entry.file_size > end:
            raise ValueError("entries overlap")
        if ".." in entry.filename.split("/") or entry.filename.startswith("/"):
            raise ValueError("path")


def _content(archive: zipfile.ZipFile, classes: frozenset[str]) -> Any:
    entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
    if len({entry.filename.partition("/")[0] for entry in archive.infolist()}) != 1:
        raise ValueError("several roots")
    if entries["data.pkl"].file_size > MAX_PICKLE or archive.read(entries["byteorder"]) != b"little":
        raise ValueError("description")
    for name, entry in entries.items():
        if not name.startswith("data/"):
            archive.read(entry)  # verifies its checksum
    storages: dict[str, Tensor] = {}

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        entry = entries[f"data/{key}"]
        if entry.file_size != count * dtype.itemsize:
            raise ValueError("a storage of another size than its entry")
        if key not in storages:
            content = bytearray(archive.read(entry))
            storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        if storages[key].dtype != dtype:
            raise ValueError("one storage of two types")
        return storages[key]

    return loads(archive.read(entries["data.pkl"]), storage, classes)


def _refuse_other_archives(path: Path, full_names: list[str], what: str) -> None:
    names = {name.partition("/")[2] for name in full_names}
    if "data.pkl" in names and "constants.pkl" not in names:
        return
    kind = "a zip archive that torch has not written"
    if "constants.pkl" in names:
        kind = "a TorchScript program"
    elif "archive_format" in names:
        kind = "a torch.export program or AOTInductor package"
    elif any(name.endswith(".npy") for name in full_names):
        kind = "a collection of NumPy arrays"
    raise UserError(f"{path} is {kind}; expected {what}")
