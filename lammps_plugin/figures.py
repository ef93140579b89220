"""What a run will take, told before it starts: bytes between ranks, and bytes of memory against what there is."""

from __future__ import annotations

from triforces_deploy.lammps_plugin.startup import Shares
from triforces_deploy.memory import Memory, Need
from triforces_deploy.potential import Facts, Potential
from triforces_deploy.precision import PRECISIONS


def figures_of(potential: Potential, shares: Shares, ranks: int) -> tuple[bool, list[str]]:
    """Whether the compiled form fits into memory, and the lines of the start-up block that hold numbers of this system."""
    lines = _communication(potential.facts, shares) if ranks > 1 and potential.facts.n_exchanges else []
    fits = _fits(potential.memory, shares)
    return fits, lines + _memory(potential.memory, shares, fits)


def exchanged_bytes(facts: Facts, ghosts: int) -> int:
    """What the exchanges of one evaluation, forward and backward, bring to so many ghosts and take from them.

    Rows travel in whole float64 numbers.
    """
    size = PRECISIONS[facts.precision].dtype.itemsize
    return 2 * ghosts * sum(8 * -(-width * size // 8) for width in facts.exchange_widths)


def _communication(facts: Facts, shares: Shares) -> list[str]:
    (few, many), (least, most) = shares.ghost_rows, shares.ghosts
    lines = [f"ghosts: {least} to {most} per rank, of {few} to {many} atoms of other ranks"]
    if facts.exchange_widths:
        kind = str(PRECISIONS[facts.precision].dtype).removeprefix("torch.")
        widths = " + ".join(map(str, facts.exchange_widths))
        lines.append(
            f"per evaluation each ghost gets and gives back {widths} {kind} numbers: "
            f"{exchanged_bytes(facts, least)} to {exchanged_bytes(facts, most)} bytes per rank"
        )
    return lines


def _fits(memory: Memory, shares: Shares) -> bool:
    return memory.whole is None or memory.whole.bytes(shares.rows, shares.edges) <= memory.limit()


def _memory(memory: Memory, shares: Shares, fits: bool) -> list[str]:
    lines = []
    if memory.whole is not None:
        lines.append("memory: " + _need(memory.whole, memory, shares))
    if memory.blocked is not None and (memory.whole is None or not fits):
        need = memory.blocked()
        lines.append(f"memory{', in blocks instead: ' if lines else ' in blocks: '}{_need(need, memory, shares)}")
        if need.bytes(shares.rows, shares.edges) > memory.limit():
            lines.append(
                "WARNING: this may not fit even so; use more ranks on more machines, a model in float32, or TFDEPLOY_SCRATCH"
            )
    return lines


def _need(need: Need, memory: Memory, shares: Shares) -> str:
    per_owned = need.bytes(shares.rows, shares.edges) / max(shares.owned, 1)
    up_to = f", up to {int(memory.limit() / per_owned)} atoms per rank" if per_owned else ""
    return (
        f"{need.per_edge / 1e3:.2f} kB per edge and {need.per_atom / 1e3:.2f} kB per atom, "
        f"{_size(need.bytes(shares.rows, shares.edges))} on the largest rank, of {_size(memory.limit())} allowed{up_to}"
    )


def _size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
