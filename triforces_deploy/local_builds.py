"""Payloads made anew on this machine, from the safe core of a file whose own compiled code does not run here.

What makes them is the export part, found through its entry point. Each is compared with the eager model before it is kept.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import torch

from triforces_deploy import __version__
from triforces_deploy.config import as_dict, read
from triforces_deploy.contents import Artifact, sha256
from triforces_deploy.errors import UserError
from triforces_deploy.files import replacing
from triforces_deploy.payloads.base import Payload, PayloadInfo, UnusableError
from triforces_deploy.payloads.table import backend
from triforces_deploy.trust import HOME, refuse_writable_by_others

COMPILERS = "triforces_deploy.compilers"
"""Entry points whose 'export' is a function (artifact, back end, device) → verified Payload."""


def rebuilt(artifact: Artifact, name: str, backend_name: str, reason: str, device: torch.device) -> Payload:
    """The same back end as in the file, from the cache or compiled now; of several processes one compiles, others wait.

    Args:
        artifact: whose safe core is compiled.
        name: how messages call it.
        backend_name: a key of payloads/table.py.
        reason: why the file's own payload does not run, for the line on standard error.
        device: what it is compiled for, where that makes a difference.

    Raises:
        UnusableError: it cannot be made or kept here, or is not equal to the eager model.
    """
    try:
        path = _folder() / _key(artifact, backend_name, device)
        with _alone(path.with_suffix(".lock")):
            found = _cached(path)
            if found is None:
                print(
                    f"triforces-deploy: {name}: {backend_name}: {reason}. Rebuilding it here, once", file=sys.stderr, flush=True
                )
                found = _compile(artifact, backend_name, device)
                _keep(path, found)
        return found
    except UserError as error:
        raise UnusableError(str(error)) from error
    except OSError as error:
        raise UnusableError(f"cannot keep what is rebuilt: {error}; point {HOME} to a folder of yours") from error


def _compile(artifact: Artifact, backend_name: str, device: torch.device) -> Payload:
    found = list(entry_points(group=COMPILERS, name="export"))
    if not found:
        raise UnusableError("it cannot be rebuilt, this installation has no export part")
    payload: Payload = found[0].load()(artifact, backend_name, device)
    return payload


def _key(artifact: Artifact, backend_name: str, device: torch.device) -> str:
    """Digest of everything that decides what the compiled form computes and where it runs."""
    metadata = artifact.metadata
    outputs = next(info.outputs for info in metadata.payloads if info.backend == backend_name)
    facts = {k: v for k, v in as_dict(metadata.facts).items() if k != "policies"}
    here = [backend(backend_name).machine(device), torch.__version__, __version__, _sources()]
    parts = [backend_name, outputs, facts, as_dict(metadata.config), metadata.weights_sha256, here]
    return sha256(json.dumps(parts, sort_keys=True).encode())


def _sources() -> str:
    """Digest of the core's own code: an update from a repository changes models, not the version."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return sha256(b"".join(file.read_bytes() for file in files))


def _folder() -> Path:
    if os.environ.get(HOME):
        folder = Path(os.environ[HOME]) / "payloads"
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "triforces-deploy" / "payloads"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    refuse_writable_by_others(folder)
    return folder


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _keep(path: Path, payload: Payload) -> None:
    """One line of description, then the content."""
    with replacing(path) as temporary:
        temporary.write_bytes(json.dumps(as_dict(payload.info)).encode() + b"\n" + payload.content)
    path.chmod(0o600)


def _cached(path: Path) -> Payload | None:
    """What was kept, unless it has changed since."""
    try:
        refuse_writable_by_others(path)
        description, _, content = path.read_bytes().partition(b"\n")
        info = read(PayloadInfo, json.loads(description), str(path))
    except (OSError, ValueError, UserError):
        return None
    return Payload(info, content) if sha256(content) == info.sha256 else None
