"""Whose compiled code may run: a list, per user, of artifacts that were made here or that the user vouched for.

AOTInductor packages, TorchScript and torch.export programs are programs. Whoever opens one lets it do anything, so those of
an artifact are opened only when the artifact is on the list. The rest of the file needs no trust.
"""

from __future__ import annotations

import json
import os
import stat
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from triforces_deploy.config import as_dict
from triforces_deploy.contents import Metadata, sha256
from triforces_deploy.errors import UserError
from triforces_deploy.files import replacing
from triforces_deploy.payloads.table import has_code

HOME = "TFDEPLOY_HOME"
"""Environment variable: one folder for the list and for what is rebuilt here, in place of those of the user's account."""
ALWAYS = "TFDEPLOY_TRUST"
"""Environment variable: 1 trusts every file, for batch jobs on files whose origin is known."""


def key(metadata: Metadata) -> str:
    """Digest of what would run: model, weights and every payload that is code.

    Not of the certificate or the provenance, so that a trusted file stays so when those are added to it.
    """
    code = sorted((info.backend, info.sha256) for info in metadata.payloads if has_code(info.backend))
    return sha256(json.dumps([as_dict(metadata.config), metadata.weights_sha256, code], sort_keys=True).encode())


def is_trusted(metadata: Metadata) -> bool:
    """Whether the file's own compiled code may run; UserError where somebody else could have written the list."""
    return os.environ.get(ALWAYS) == "1" or key(metadata) in _lines()


def remember(metadata: Metadata, name: str) -> None:
    """Put an artifact on the list, with its name and today's date for the human reader; UserError if that cannot be written."""
    if key(metadata) in _lines():
        return
    day = datetime.now(UTC).date().isoformat()
    path = _folder_of(store())
    try:
        # One write at the end: two processes that trust something at the same time both get their line.
        with open(path, "a", encoding="utf-8", errors="replace", opener=partial(os.open, mode=0o600)) as stream:
            stream.write(f"{key(metadata)} {day} {' '.join(name.split())}\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; point {HOME} to a folder of yours") from error


def forget(metadata: Metadata) -> bool:
    """Take an artifact off the list; whether it was on it."""
    lines = _lines()
    found = lines.pop(key(metadata), None) is not None
    if found:
        with replacing(store()) as temporary:
            temporary.write_text("".join(f"{digest} {rest}\n" for digest, rest in lines.items()), encoding="utf-8")
        store().chmod(0o600)
    return found


def change(metadata: Metadata, name: str, forgotten: bool) -> str:
    """What `tfdeploy trust` does; the line that says so."""
    code = [info.backend for info in metadata.payloads if has_code(info.backend)]
    if not code:
        return f"{name} holds no code, there is nothing to trust"
    if forgotten:
        return f"{name} is trusted no longer" if forget(metadata) else f"{name} was not trusted"
    remember(metadata, name)
    return f"{name} is trusted: its {', '.join(code)} will run as in the file; {store()}"


def store() -> Path:
    """The list."""
    if os.environ.get(HOME):
        return Path(os.environ[HOME]) / "trusted"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "triforces-deploy" / "trusted"


def refuse_writable_by_others(path: Path) -> None:
    """UserError where another user owns, or may write to, a file or folder of which code depends."""
    found = path.stat()
    if found.st_uid not in (0, os.getuid()) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UserError(f"{path} can be written by other users; run `chmod go-w {path}`, or point {HOME} to a folder of yours")


def _lines() -> dict[str, str]:
    """Key → the rest of its line."""
    path = store()
    try:
        refuse_writable_by_others(path)
        pairs = (line.partition(" ") for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; point {HOME} to a folder of yours") from error
    return {digest: rest for digest, _, rest in pairs if digest}


def _folder_of(path: Path) -> Path:
    """``path``, whose folder exists now."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; point {HOME} to a folder of yours") from error
    return path
