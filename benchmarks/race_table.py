"""Table and picture of benchmarks/race.py: ``python benchmarks/race_table.py`` reads results/race.jsonl.

Of each contender, form, precision, size and number of threads the shortest time and the lowest peak count, since whatever
else runs on a machine only adds to them. Writes results/race.md and results/race.png.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
TITLES = {
    "mace-small": "MACE small beside mace-torch",
    "mace-medium": "MACE medium beside mace-torch",
    "esen-sm": "eSEN-sm, conserving, beside fairchem-core",
    "orb-v3": "Orb-v3 conservative, 120 neighbours, beside orb-models (equal sizes, random weights of its own each)",
    "others": "Other packages at their own sizes: who costs what, nothing is imported",
}
ASKED = {"mace-small": (3, 5), "mace-medium": (3, 5), "esen-sm": (2, 4), "orb-v3": (1.5, 4)}
"""How many times faster and smaller than the rival's eager form ours should be."""
ROOM = 20 * 2**30
HEADING = ["form", "µs/atom", "faster", "peak MiB", "smaller", "atoms in 20 GiB", "reached", "eV/atom"]
Row = dict[str, Any]


def main() -> None:
    rows: dict[tuple[Any, ...], Row] = {}
    for row in map(json.loads, (RESULTS / "race.jsonl").read_text().splitlines()):
        key = (*_race(row), row["who"], row["form"])
        ran = [r for r in (rows.get(key, row), row) if "error" not in r] or [row]
        rows[key] = ran[0] | {what: min(r[what] for r in ran) for what in ("seconds", "peak_bytes") if what in ran[0]}
    ordered = sorted(rows.values(), key=_race)
    (RESULTS / "race.md").write_text("\n".join([asked_and_seen(ordered), flatness(ordered), table(ordered)]))
    picture(ordered)


def _race(row: Row) -> tuple[Any, ...]:
    """Rows that may be compared."""
    return list(TITLES).index(row["case"]), row["precision"], row["threads"], row["atoms"]


def asked_and_seen(rows: Iterable[Row]) -> str:
    """Of each race the form of ours that comes nearest to both asked figures at once."""
    heading = [
        "model",
        "precision",
        "threads",
        "atoms",
        "asked",
        "form of ours",
        "faster",
        "smaller",
        "best of theirs",
        "reached",
    ]
    out = ["## Asked and seen", "", *_head(heading, 4)]
    for _, same in groupby(rows, key=_race):
        group = [row for row in same if "error" not in row]
        base = _base(group)
        ours = [row for row in group if row["who"] == "ours"]
        if not base or not ours or base["case"] not in ASKED:
            continue
        least = ASKED[base["case"]]
        best = max(ours, key=lambda row: min(r / a for r, a in zip(_ratios(row, base), least, strict=True)))
        fastest = min(row["seconds"] for row in group if row["who"] != "ours")
        ratios = _ratios(best, base)
        first = [TITLES[base["case"]].split(",")[0].split(" beside")[0], base["precision"], base["threads"], base["atoms"]]
        seen = [best["form"], *map(_times, ratios), _times(fastest / best["seconds"]), _reached(best, ratios)]
        out.append(_line([*first, f"{least[0]}×, {least[1]}×", *seen]))
    return "\n".join([*out, ""])


def flatness(rows: Iterable[Row]) -> str:
    """Cost per atom of each form of ours that was run at several sizes."""
    sizes: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["who"] == "ours" and "error" not in row and row["case"] in ASKED:
            sizes.setdefault((row["case"], row["precision"], row["threads"], row["form"]), []).append(row)
    heading = ["model", "precision", "threads", "form", "µs/atom at so many atoms", "largest over smallest cell", "MiB"]
    out = ["## Cost per atom", "", *_head(heading, 4)]
    for (case, *kind), found in sizes.items():
        if len(found) > 1:
            costs = [row["seconds"] / row["atoms"] * 1e6 for row in found]
            listed = ", ".join(f"{row['atoms']}: {cost:.0f}" for row, cost in zip(found, costs, strict=True))
            peaks = ", ".join(f"{row['peak_bytes'] / 2**20:.0f}" for row in found)
            out.append(_line([case, *kind, listed, f"{100 * (costs[-1] / costs[0] - 1):+.0f} %", peaks]))
    return "\n".join([*out, ""])


def table(rows: Iterable[Row]) -> str:
    """A section for each model, a table for each precision, number of threads and size; ratios are to the rival's eager form.

    The largest cell is an extrapolation: 20 GiB over the bytes per atom at the size that was measured.
    """
    out: list[str] = []
    for case, of_case in groupby(rows, key=lambda r: r["case"]):
        out += [f"## {TITLES[case]}", ""]
        for (_, precision, threads, atoms), same in groupby(of_case, key=_race):
            group = sorted(same, key=lambda r: r["who"] == "ours")
            out += [f"{atoms} Si atoms, {precision}, {threads} thread{'s' * (threads > 1)}", "", *_head(HEADING, 1)]
            out += [*(_line(_cells(row, _base(group))) for row in group), ""]
    return "\n".join(out)


def _base(rows: list[Row]) -> Row:
    return next((r for r in rows if r["who"] != "ours" and r["form"] == "eager" and "error" not in r), {})


def _cells(row: Row, base: Row) -> list[str]:
    name = f"{row['who']}, {row['form']}"
    if "error" in row:
        return [name, row["error"].replace("|", "/").replace("\n", " ")[:90], *[""] * (len(HEADING) - 2)]
    ratios = _ratios(row, base)
    return [
        name,
        f"{row['seconds'] / row['atoms'] * 1e6:.0f}",
        _times(ratios[0]),
        f"{row['peak_bytes'] / 2**20:.0f}",
        _times(ratios[1]),
        f"{ROOM / row['peak_bytes'] * row['atoms']:.0f}",
        _reached(row, ratios) if row["who"] == "ours" else "",
        f"{row['energy'] / row['atoms']:.6f}",
    ]


def _ratios(row: Row, base: Row) -> list[float]:
    """How many times faster and smaller than the rival's eager form; not a number where that is not there."""
    return [base.get(key, math.nan) / row[key] for key in ("seconds", "peak_bytes")]


def _times(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}×"


def _reached(row: Row, ratios: list[float]) -> str:
    """Which of the two asked figures this form reaches; both together are asked of one form."""
    if row["case"] not in ASKED or math.isnan(ratios[0]):
        return ""
    asked = zip(("speed", "memory"), ratios, ASKED[row["case"]], strict=True)
    found = [what for what, ratio, least in asked if ratio >= least]
    return {2: "**both**", 1: " ".join(found), 0: "no"}[len(found)]


def _head(titles: list[str], words: int) -> list[str]:
    """Two lines of a table whose first columns are words."""
    return [_line(titles), "|" + "---|" * words + "---:|" * (len(titles) - words)]


def _line(cells: list[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def picture(rows: list[Row]) -> None:
    """Memory against time per atom of every form in float32 on one thread; small marks are 216 atoms, large ones 1,000."""
    import matplotlib.pyplot as plt

    cases = [case for case in ASKED if any(r["case"] == case for r in rows)]
    figure, axes = plt.subplots(1, len(cases), figsize=(3.6 * len(cases), 3.6), squeeze=False, layout="constrained")
    for axis, case in zip(axes[0], cases, strict=True):
        for row in rows:
            if (row["case"], row["precision"], row["threads"]) != (case, "float32", 1) or "error" in row:
                continue
            if row["atoms"] not in (216, 1000):
                continue
            x, y = row["seconds"] / row["atoms"] * 1e3, row["peak_bytes"] / row["atoms"] / 2**20
            ours = row["who"] == "ours"
            size = 16 if row["atoms"] == 216 else 48
            axis.scatter(x, y, s=size, color="tab:blue" if ours else "dimgray", marker="o" if ours else "s", alpha=0.8)
            if row["atoms"] == 216:
                axis.annotate(row["form"], (x, y), xytext=(4, 3), textcoords="offset points", fontsize=6)
        axis.set(xscale="log", yscale="log", xlabel="ms per atom", ylabel="MiB per atom")
        axis.set_title(f"{TITLES[case]}\n(squares: theirs)", fontsize=8)
        axis.margins(0.25)
        axis.tick_params(labelsize=7, which="both")
    figure.savefig(RESULTS / "race.png", dpi=110)


if __name__ == "__main__":
    main()
