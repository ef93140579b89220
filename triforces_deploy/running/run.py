"""``tfdeploy run``: LAMMPS started on an input, watched, summed up; and the same again from where it was killed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from triforces_deploy.errors import UserError
from triforces_deploy.files import existing
from triforces_deploy.pictures import thermo
from triforces_deploy.running import state as states
from triforces_deploy.running.logs import Follower, Table, read_log, splice
from triforces_deploy.running.processes import Processes, program
from triforces_deploy.running.progress import Display
from triforces_deploy.running.restarts import Note
from triforces_deploy.running.resume import begin, parts
from triforces_deploy.running.script import Script, read_script
from triforces_deploy.running.state import Start, State
from triforces_deploy.running.summary import PICOSECONDS, Summary, summarise
from triforces_deploy.running.watch import Ending, Restarts, watch
from triforces_deploy.stopping import watched_signals

OURS = ("-in", "-i", "-log", "-l", "-screen", "-sc", "-partition", "-p", "-restart2info", "-restart2data", "-restart2dump")
"""Options of LAMMPS that we give ourselves, or that make something else than one run of it."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How LAMMPS is started."""

    ranks: int = 1
    lmp: str | None = None
    launcher: str | None = None
    """Its words, to which the number of ranks is added, e.g. ``srun -n``; None: mpirun, and nothing for one rank."""
    arguments: tuple[str, ...] = ()
    """Further options of LAMMPS, e.g. ``-v temperature 300``."""
    fresh: bool = False
    """Forget an earlier run of the same name."""

    def variables(self) -> dict[str, str]:
        """Those given by ``-v`` or ``-var``, the first word of each."""
        given, words = {}, self.arguments
        for k, word in enumerate(words):
            if word in OURS:
                raise UserError(f"{word} cannot be given here: `tfdeploy run` uses it itself, or it would not be one run")
            if word in ("-v", "-var"):
                if len(words) < k + 3:
                    raise UserError(f"{word} needs a name and a value, e.g. -v temperature 300")
                given[words[k + 1]] = words[k + 2]
        if "resume" in given:
            raise UserError("leave out -v resume: `tfdeploy run` finds the restart itself")
        return given

    def program(self) -> str:
        """The LAMMPS program; UserError if there is none."""
        if self.lmp is None or "/" not in self.lmp:
            return program(self.lmp or "lmp", "--lmp")
        return str(existing(Path(self.lmp), "the LAMMPS program").absolute())

    def command(self, lmp: str, script: Script, log: Path, resume: bool) -> list[str]:
        """What is started, in the folder of the input."""
        launch = self.launcher.split() if self.launcher else [program("mpirun", "--launcher"), "-np"] if self.ranks > 1 else []
        going_on = ["-v", "resume", script.resume] if resume else []
        before = [*launch, str(self.ranks)] if launch else []
        return [*before, lmp, "-in", script.path.name, "-log", str(log), *going_on, *self.arguments]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a call of :func:`run` ended."""

    code: int
    """Exit code: 0, 1 when LAMMPS failed, 130 or 143 when it was stopped."""
    message: str
    """Why, in one line."""
    summary: Summary
    picture: Path | None


def run(path: Path, options: Options, *, progress: bool = True) -> Outcome:
    """Run LAMMPS on an input, or go on with a run that was killed.

    Beside the input's own files, whose names begin with its variable ``name``, appear ``NAME.log`` (all thermo lines, as of
    a run that was never interrupted), ``NAME.log.1``, ``.2``, … (LAMMPS' own log of each start), ``NAME.screen``,
    ``NAME.run.json`` and ``NAME.png``.

    Raises:
        UserError: no such input or program; another process runs it; it was run with other variables; it cannot go on.
    """
    script = read_script(path, options.variables())
    script.prefix.parent.mkdir(parents=True, exist_ok=True)
    with states.locked(script) as lock, watched_signals() as asked:
        state = None if options.fresh or script.obstacles else states.load(script)
        now = states.fresh(script)
        if state is not None and state.done and state.script == now.script:
            ending, remark = Ending(0, ""), f"{script.prefix.name} is done already; --fresh runs it again"
            Display(script, progress).say(remark)
        else:
            state, ending = _start(script, state, options, lock, asked, progress)
        return _outcome(script, state, ending)


def _start(
    script: Script, state: State | None, options: Options, lock: int, asked: Sequence[int], progress: bool
) -> tuple[State, Ending]:
    lmp = options.program()
    beginning = begin(script, state, options.fresh)
    number = len(beginning.state.starts) + 1
    log = script.file(f"log.{number}")
    start = Start(number, beginning.step, states.boot_id(), options.ranks)
    book = _Book(
        script, dataclasses.replace(states.fresh(script), starts=(*beginning.state.starts, start), notes=beginning.state.notes)
    )
    command = options.command(lmp, script, log, beginning.step is not None)
    with Display(script, progress) as display:
        for line in beginning.remarks:
            display.say(line)
        book.write()
        processes = Processes(command, script.path.parent, script.file("screen"), lock, lmp)
        ending = watch(processes, Follower(log), Restarts(script, log, book.note), display.update, asked)
    book.end(ending)
    splice(parts(script, book.state), script.file("log"))
    return book.state, ending


class _Book:
    """Keeps the file of the state up to date."""

    def __init__(self, script: Script, state: State) -> None:
        self.script, self.state, self.began = script, state, time.monotonic()

    def write(self) -> None:
        *before, last = self.state.starts
        starts = (*before, dataclasses.replace(last, seconds=time.monotonic() - self.began))
        self.state = dataclasses.replace(self.state, starts=starts)
        states.save(self.script, self.state)

    def note(self, note: Note) -> None:
        self.state = self.state.with_note(note)
        self.write()

    def end(self, ending: Ending) -> None:
        done = ending.code == 0 and ending.signal is None
        self.state = dataclasses.replace(self.state, done=done, message=ending.error)
        self.write()


def _outcome(script: Script, state: State, ending: Ending) -> Outcome:
    log = read_log(script.file("log"))
    seconds = sum(start.seconds for start in state.starts)
    summary = summarise(log, script.prefix.name, script.units, state.done, len(state.starts), seconds)
    picture = None if ending.signal else _picture(log.tables, script)  # whoever stops a run does not wait for pictures
    step = max((note.step for note in state.notes), default=None)
    if ending.signal is None and not ending.error:
        return Outcome(0, "", summary, picture)
    if script.obstacles:
        on = "the same command starts from the beginning"
    else:
        on = "the same command goes on " + (f"from step {step}" if step is not None else "from the beginning")
    why = ending.error or f"stopped after step {summary.step}"
    return Outcome(128 + ending.signal if ending.signal else 1, f"{why}; {on}", summary, picture)


def _picture(tables: Sequence[Table], script: Script) -> Path | None:
    """Energy, temperature and pressure of all that moved; None when nothing did."""
    moved = [table for table in tables if any(table.column("Temp"))]
    keys = ("Time",) if all("Time" in t.columns for t in moved) and script.units in PICOSECONDS else ("Step",)
    x = [value for table in moved for value in table.column(*keys)]
    if len(x) < 2:
        return None
    scale = PICOSECONDS.get(script.units, 1.0) if keys == ("Time",) else 1.0
    panels = {}
    for label, names in (("energy", ("Econserve", "TotEng", "PotEng")), ("temperature", ("Temp",)), ("pressure", ("Press",))):
        y = [value for table in moved for value in table.column(*names)]
        if len(y) == len(x):
            panels[label] = y
    return thermo([value * scale for value in x], panels, "time, ps" if keys == ("Time",) else "step", script.file("png"))
