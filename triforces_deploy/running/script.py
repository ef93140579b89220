"""What a LAMMPS input says about its own output: enough to watch a run, and to go on with it after a kill.

Any input can be watched. One that shall go on after a kill needs what ``tfdeploy defect`` writes:

- ``variable name index …``, the prefix of every output file, and ``variable resume index none``; where that names a file,
  the input reads this restart in place of its data and leaves out minimisation and initial velocities;
- after them, ``restart N FILE.a FILE.b``, and a first restart written to ``FILE.b``;
- phases that end at absolute steps, each in an ``if "$(step) <= END" then …  "run END upto" …``: a restart from the very end
  of a phase then prints that step as the undisturbed run does;
- ``thermo_modify flush yes``, and dumps as text, with ``append yes`` where the run goes on.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from triforces_deploy.errors import UserError
from triforces_deploy.files import existing

TOKEN = re.compile(r'"""(.*?)"""|"([^"]*)"|\'([^\']*)\'|(\S+)', re.DOTALL)
TEXT_DUMPS = ("atom", "custom", "xyz")
"""Styles whose frames begin with a line that says the step."""


@dataclasses.dataclass(frozen=True)
class Dump:
    """A ``dump`` command."""

    id: str
    path: Path
    """Holds a ``*`` where each frame is a file."""
    every: int
    """Steps between frames."""


@dataclasses.dataclass(frozen=True)
class Script:
    """An input with its variables filled in."""

    path: Path
    prefix: Path
    """What the names of our own files begin with."""
    variables: dict[str, str]
    """Index variables and the values in force."""
    restarts: tuple[Path, ...] = ()
    """The two alternating restart files."""
    dumps: tuple[Dump, ...] = ()
    thermo: int | None = None
    """Steps between lines of the log; None where it is not a number."""
    last_step: int | None = None
    """Where the run ends; None where that cannot be read off."""
    units: str = "lj"
    obstacles: tuple[str, ...] = ()
    """Why a killed run could not go on, one short reason each; none when it could."""

    @property
    def good_restart(self) -> Path:
        """Where the restart to go on from is put."""
        return self.file("restart")

    @property
    def resume(self) -> str:
        """The same as LAMMPS is told, which cannot read a name with blanks."""
        path, folder = self.good_restart, self.path.parent
        return str(path.relative_to(folder) if path.is_relative_to(folder) else path)

    def file(self, end: str) -> Path:
        """A file of this run."""
        return self.prefix.with_name(f"{self.prefix.name}.{end}")


def read_script(path: Path, given: Mapping[str, str]) -> Script:
    """Read an input.

    Args:
        path: of the input; LAMMPS runs in its folder, so names in it are relative to that.
        given: variables of the command line, which win over ``variable NAME index``.

    Raises:
        UserError: there is no such file, or it is no text.
    """
    try:
        text = existing(path, "a LAMMPS input").read_text()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text; expected a LAMMPS input") from error
    reader = _Reader(path.resolve(), dict(given))
    for number, words in _commands(text):
        reader.read(number, words)
    return reader.script()


def _commands(text: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and words of every command, those inside an ``if`` too."""
    lines = text.splitlines()
    k = 0
    while k < len(lines):
        number, line = k + 1, lines[k]
        while line.rstrip().endswith("&") and k + 1 < len(lines):
            k += 1
            line = line.rstrip()[:-1] + lines[k]
        k += 1
        yield from _nested(number, _words(line))


def _nested(number: int, words: list[str]) -> Iterator[tuple[int, list[str]]]:
    if words[:1] == ["if"]:
        for command in words[2:]:
            yield from _nested(number, _words(command))
    elif words:
        yield number, words


def _words(line: str) -> list[str]:
    """The words of a line, quotes taken off, up to a comment."""
    words = []
    for match in TOKEN.finditer(line):
        word = next(group for group in match.groups() if group is not None)
        if match.group(4) is not None and word.startswith("#"):
            break
        words.append(word)
    return words


class _Reader:
    """Collects what the commands say."""

    def __init__(self, path: Path, given: dict[str, str]) -> None:
        self.path = path
        self.given = given
        self.variables: dict[str, str] = {}
        self.restarts: list[str] = []
        self.dumps: dict[str, tuple[int, list[str]]] = {}
        self.appended: set[str] = set()
        self.flushed = False
        self.thermo: int | None = None
        self.units = "lj"
        self.end: int | None = 0
        self.obstacles: list[str] = []

    def read(self, number: int, words: list[str]) -> None:
        name, *words = [self._filled(word) for word in words]
        if name == "variable" and words[1:2] in (["index"], ["string"]):
            self.variables[words[0]] = self.given.get(words[0], words[2])
        elif name == "restart" and words != ["0"]:
            self.restarts = words
        elif name == "dump":
            self.dumps[words[0]] = (number, words)
        elif name == "dump_modify" and "append yes" in " ".join(words[1:]):
            self.appended.add(words[0])
        elif name == "thermo":
            self.thermo = _number(words[0])
        elif name == "thermo_modify" and "flush yes" in " ".join(words):
            self.flushed = True
        elif name == "units":
            self.units = words[0]
        elif name == "run":
            self._run(words)
        elif name in ("log", "clear", "next", "rerun") or (name == "fix" and "file" in words):
            what = f"fix {words[0]} writes a file" if name == "fix" else f"'{name}'"
            self.obstacles.append(f"line {number}: {what}, which cannot be cut at a step")
            self.end = None if name == "next" else self.end

    def _filled(self, word: str) -> str:
        return re.sub(r"\$(?:\{(\w+)\}|(\w))", lambda m: self.variables.get(m[1] or m[2], m[0]), word)

    def _run(self, words: list[str]) -> None:
        steps = _number(words[0])
        if steps is None or self.end is None:
            self.end = None
        else:
            self.end = max(self.end, steps) if words[1:2] == ["upto"] else self.end + steps

    def script(self) -> Script:
        folder = self.path.parent
        dumps = [Dump(words[0], folder / words[4], _number(words[3]) or 0) for _, words in self.dumps.values()]
        return Script(
            path=self.path,
            prefix=folder / self.variables.get("name", self.path.name),
            variables=self.variables,
            restarts=tuple(folder / name for name in self.restarts[1:]),
            dumps=tuple(dumps),
            thermo=self.thermo,
            last_step=self.end or None,
            units=self.units,
            obstacles=tuple(self._reasons()),
        )

    def _reasons(self) -> Iterator[str]:
        if "resume" not in self.variables:
            yield "it has no `variable resume index none`; see the input that `tfdeploy defect` writes"
        if " " in self.variables.get("name", ""):
            yield "LAMMPS cannot read a restart whose name holds blanks; choose another variable name"
        if len(self.restarts) != 3 or "$" in " ".join(self.restarts) or "*" in " ".join(self.restarts):
            yield "it needs `restart N FILE.a FILE.b` with names made of index variables"
        if not self.flushed:
            yield "it needs `thermo_modify flush yes`, or lines of the log are lost in a buffer"
        for number, words in self.dumps.values():
            name = words[4] if len(words) > 4 else ""
            if words[2] not in TEXT_DUMPS or name.endswith((".gz", ".zst", ".bin", ".bz2", ".xz")):
                yield f"line {number}: dump {words[0]} ({words[2]} {name}) cannot be cut at a step; write custom text"
            elif not (_number(words[3]) or 0) or "$" in name:
                yield f"line {number}: dump {words[0]} needs a fixed interval and a name made of index variables"
            elif words[0] not in self.appended and "*" not in name:
                yield f"line {number}: dump {words[0]} needs `dump_modify {words[0]} append yes` where it goes on"
        yield from self.obstacles


def _number(word: str) -> int | None:
    return int(word) if re.fullmatch(r"\d+", word) else None
