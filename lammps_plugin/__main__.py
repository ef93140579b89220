"""``python -m triforces_deploy.lammps_plugin``: LAMMPS inside this interpreter, or ``build`` to compile the plugin."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from triforces_deploy.errors import UserError


def main(arguments: Sequence[str]) -> int:
    """Run LAMMPS with the arguments of ``lmp``, or with ``build`` compile the plugin; returns the exit code."""
    if list(arguments) == ["build"]:
        return _build()
    script, others = _input_script(arguments)
    if script is None:
        print("usage: python -m triforces_deploy.lammps_plugin build | -in FILE [any other option of lmp]", file=sys.stderr)
        return 2
    return _run(script, others)


def _build() -> int:
    from triforces_deploy.lammps_plugin import build

    try:
        print(f"LAMMPS plugin: {build.prebuild()}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _input_script(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The file behind ``-in`` and all other arguments."""
    for k, argument in enumerate(arguments[:-1]):
        if argument in ("-in", "-i"):
            return arguments[k + 1], [*arguments[:k], *arguments[k + 2 :]]
    return None, list(arguments)


def _run(script: str, options: list[str]) -> int:
    import lammps

    try:
        host = lammps.lammps(cmdargs=options)
        host.file(script)
        host.close()
        host.finalize()
    except Exception as error:  # LAMMPS has printed its own message
        print(f"LAMMPS stopped: {error}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        # Not sys.exit: leaving without MPI_Finalize is what makes mpirun end the other ranks.
        os._exit(1)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
