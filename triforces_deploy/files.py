"""Files appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from triforces_deploy.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path`` to write to, and rename it to ``path`` when the block ends well.

    Raises:
        UserError: the folder does not exist or cannot be written, or the disk is full.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent or Path(), prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose a folder that exists and can be written") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _publish(temporary, 0o666)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; free some space or choose another folder") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path`` to fill, and rename it to ``path`` when the block ends well.

    Raises:
        UserError: ``path`` exists, its folder cannot be written, or the disk is full.
    """
    if path.exists():
        raise UserError(f"{path} exists already; remove it or choose another name")
    try:
        temporary = Path(tempfile.mkdtemp(dir=path.parent or Path(), prefix=f".{path.name}.", suffix=".part"))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose a folder that exists and can be written") from error
    try:
        yield temporary
        _publish(temporary, 0o777)
        temporary.rename(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; free some space or choose another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary: Path, mode: int) -> None:
    """Give it the permissions of what a program makes; the module ``tempfile`` makes things private."""
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(mode & ~umask)


def sha256_of(path: Path) -> str:
    """Hexadecimal digest of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def existing(path: Path, what: str) -> Path:
    """``path`` if it is a file; UserError naming what was expected there otherwise."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; expected {what}")
    if not path.is_file():
        raise UserError(f"{path} does not exist; expected {what}")
    return path
