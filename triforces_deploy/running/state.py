"""What is remembered of a run between its starts, in ``NAME.run.json``, and the lock that keeps it to one start at a time."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from triforces_deploy.config import read
from triforces_deploy.errors import UserError
from triforces_deploy.files import replacing
from triforces_deploy.running.restarts import Note
from triforces_deploy.running.script import Script

BOOT = Path("/proc/sys/kernel/random/boot_id")
KEPT_NOTES = 8


@dataclasses.dataclass(frozen=True)
class Start:
    """One start of LAMMPS."""

    number: int
    """Its log is ``NAME.log.NUMBER``."""
    step: int | None
    """Of the restart it went on from; None for the beginning."""
    boot: str
    """Of the machine."""
    ranks: int
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class State:
    """Of a run."""

    script: str
    """SHA-256 of the input."""
    variables: dict[str, str]
    starts: tuple[Start, ...] = ()
    notes: tuple[Note, ...] = ()
    done: bool = False
    message: str = ""
    """How the last start ended."""

    def with_note(self, note: Note) -> State:
        return dataclasses.replace(self, notes=(*self.notes, note)[-KEPT_NOTES:])


def boot_id() -> str:
    """Changes when the machine starts anew."""
    return BOOT.read_text().strip()


def fresh(script: Script) -> State:
    """Before the first start."""
    return State(hashlib.sha256(script.path.read_bytes()).hexdigest(), script.variables)


def load(script: Script) -> State | None:
    """What is remembered; None before the first start.

    Raises:
        UserError: the file is damaged, or the run had other variables.
    """
    path = script.file("run.json")
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged; remove it, or start from the beginning with --fresh") from error
    state = read(State, data, str(path))
    for name, value in script.variables.items():
        before = state.variables.get(name, value)
        if before != value and name != "resume":
            raise UserError(
                f"{script.prefix.name} was run with {name} = {before}, now it is {value}; give the new run a name of its own "
                f"(-v name OTHER), or start from the beginning with --fresh"
            )
    return state


def save(script: Script, state: State) -> None:
    """Remember."""
    with replacing(script.file("run.json")) as part:
        part.write_text(json.dumps(dataclasses.asdict(state), indent=1))


@contextmanager
def locked(script: Script) -> Iterator[int]:
    """Hold the run; gives a file descriptor that LAMMPS must inherit, so that the run stays held while any rank lives.

    Raises:
        UserError: it is being run already, or its folder does not exist.
    """
    path = script.file("run.lock")
    try:
        stream = path.open("w")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose a folder that exists and can be written") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{script.prefix.name} is being run already, by processes that hold {path}; wait, or end them"
            ) from error
        yield stream.fileno()
