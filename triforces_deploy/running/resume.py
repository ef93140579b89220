"""Where a run begins: at the first step, or at the last restart up to which everything is on the disk."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from triforces_deploy.errors import UserError
from triforces_deploy.running import dumps
from triforces_deploy.running.logs import last_before, splice
from triforces_deploy.running.restarts import DamagedError, Restart, judged
from triforces_deploy.running.script import Script
from triforces_deploy.running.state import State, boot_id, fresh


@dataclasses.dataclass(frozen=True)
class Beginning:
    """What comes before a start."""

    state: State
    step: int | None
    """Of the restart that was put in place; None for the beginning."""
    remarks: tuple[str, ...] = ()
    """What the user should know, one line each."""


def begin(script: Script, state: State | None, fresh_start: bool) -> Beginning:
    """Prepare the files for the next start.

    For a fresh start, what an earlier run has left is taken away. Otherwise the newest restart is put in place that is whole
    and that log and dumps reach up to, and the dumps are cut there. Killed in the middle of this, the next call does the rest.

    Raises:
        UserError: there were restarts, and none can be used; or nothing is known of the run that wrote them.
    """
    if script.obstacles:
        more = f" (and {len(script.obstacles) - 1} more)" if len(script.obstacles) > 1 else ""
        line = f"note: {script.path.name} cannot go on after a kill: {script.obstacles[0]}{more}"
        return Beginning(_cleared(script), None, (line,))
    if fresh_start:
        return Beginning(_cleared(script), None)
    if state is None:
        _refuse_unknown(script)
        return Beginning(_cleared(script), None)
    splice(parts(script, state), script.file("log"))
    restart, refused = _choose(script, state)
    if restart is None:
        if state.notes:
            raise UserError(
                f"{script.prefix.name} cannot go on: {'; '.join(refused)}; put a good restart in place, or start from the "
                "beginning with --fresh"
            )
        return Beginning(_cleared(script), None, ("no restart was written before the end; starting from the beginning",))
    if restart.path != script.good_restart:
        restart.path.replace(script.good_restart)  # LAMMPS is about to write over the two
    for dump in script.dumps:
        dumps.cut(dump, restart.step)
    # A run writes its later restarts again, and not always the same bits; notes on the former ones would speak against them.
    notes = tuple(note for note in state.notes if note.step <= restart.step)
    remarks = tuple(f"note: {line}" for line in refused)
    return Beginning(dataclasses.replace(state, notes=notes), restart.step, (*remarks, f"going on from step {restart.step}"))


def parts(script: Script, state: State) -> list[tuple[Path, int | None]]:
    """LAMMPS' own log of each start, with the step it began from."""
    return [(script.file(f"log.{start.number}"), start.step) for start in state.starts]


def _choose(script: Script, state: State) -> tuple[Restart | None, list[str]]:
    """The restart to go on from, and what is wrong with those that are newer."""
    same_boot = bool(state.starts) and state.starts[-1].boot == boot_id()
    found, damaged = [], []
    for path in (*script.restarts, script.good_restart):
        try:
            found.append(judged(path, state.notes, same_boot))
        except DamagedError as error:
            if path.is_file():
                damaged.append(f"{path.name} {error}")
    for restart in sorted(found, key=lambda r: r.step, reverse=True):
        gap = _gap(script, restart.step)
        if gap is None:
            return restart, damaged
        damaged.append(f"{restart.path.name} is of step {restart.step}, but {gap} are missing")
    return None, damaged


def _gap(script: Script, step: int) -> str | None:
    """What log or dumps lack before ``step``."""
    last = last_before(script.file("log"), step)
    if script.thermo and last is not None and last < (step - 1) // script.thermo * script.thermo:
        return f"lines of the log between steps {last} and {step}"
    return next((gap for dump in script.dumps if (gap := dumps.missing(dump, step))), None)


def _refuse_unknown(script: Script) -> None:
    """What LAMMPS by itself has begun may be the work of a week; log and dumps cannot be matched to its restarts."""
    found = next((path for path in script.restarts if path.is_file()), None)
    if found is not None:
        raise UserError(
            f"{found} is of a run that was not started by `tfdeploy run`; go on with it by `lmp -in {script.path.name} "
            f"-var resume {found.name}`, choose another name (-v name OTHER), or replace it with --fresh"
        )


def _cleared(script: Script) -> State:
    """Take away what an earlier run has left under this name; of an input that is not understood, only what is ours."""
    logs = script.prefix.parent.glob(f"{script.prefix.name}.log.*")
    ours = [script.file(end) for end in ("log", "run.json")] + [p for p in logs if p.suffix[1:].isdecimal()]
    if not script.obstacles:
        ours += [*script.restarts, script.good_restart]
        for dump in script.dumps:
            dumps.remove(dump)
    for path in ours:
        path.unlink(missing_ok=True)
    return fresh(script)
