"""Table and picture of benchmarks/race.py: ``python benchmarks/race_table.py`` reads results/race.jsonl.

Of each contender, form, precision, size and number of threads the fastest measurement counts, since whatever else runs on a
machine only slows them down. Writes results/race.md and results/race.png.
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
    "orb-v3": "Orb-v3 conservative, 120 neighbours, beside orb-models",
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
        key = (row["case"], row["precision"], row["threads"], row["atoms"], row["who"], row["form"])
        if row.get("seconds", math.inf) <= rows.get(key, {}).get("seconds", math.inf):
            rows[key] = row
    (RESULTS / "race.md").write_text(table(rows.values()))
    picture(list(rows.values()))


def table(rows: Iterable[Row]) -> str:
    """A section for each model, a table for each precision, number of threads and size; ratios are to the rival's eager form.

    The largest cell is an extrapolation: 20 GiB over the bytes per atom at the size that was measured.
    """
    order = list(TITLES)
    ordered = sorted(rows, key=lambda r: (order.index(r["case"]), r["precision"], r["threads"], r["atoms"]))
    out = []
    for case, of_case in groupby(ordered, key=lambda r: r["case"]):
        asked = f" (asked: {ASKED[case][0]}× faster and {ASKED[case][1]}× smaller)" if case in ASKED else ""
        out += [f"## {TITLES[case]}{asked}", ""]
        for (precision, threads, atoms), same in groupby(of_case, key=lambda r: (r["precision"], r["threads"], r["atoms"])):
            plural = "s" if threads > 1 else ""
            out += [f"{atoms} Si atoms, {precision}, {threads} thread{plural}", ""]
            out += ["| " + " | ".join(HEADING) + " |", "|---|" + "---:|" * (len(HEADING) - 1), *_lines(list(same)), ""]
    return "\n".join(out)


def _lines(rows: list[Row]) -> list[str]:
    base = next((r for r in rows if r["who"] != "ours" and r["form"] == "eager"), {})
    return ["| " + " | ".join(_cells(row, base)) + " |" for row in sorted(rows, key=lambda r: r["who"] == "ours")]


def _cells(row: Row, base: Row) -> list[str]:
    name = f"{row['who']}, {row['form']}"
    if "error" in row:
        return [name, row["error"].replace("|", "/").replace("\n", " ")[:90], *[""] * (len(HEADING) - 2)]
    ratios = [base[key] / row[key] if key in base else math.nan for key in ("seconds", "peak_bytes")]
    return [
        name,
        f"{row['seconds'] / row['atoms'] * 1e6:.0f}",
        _ratio(ratios[0]),
        f"{row['peak_bytes'] / 2**20:.0f}",
        _ratio(ratios[1]),
        f"{ROOM / row['peak_bytes'] * row['atoms']:.0f}",
        _reached(row, ratios),
        f"{row['energy'] / row['atoms']:.6f}",
    ]


def _ratio(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}×"


def _reached(row: Row, ratios: list[float]) -> str:
    """Which of the two asked figures this form reaches; both together are asked of one form."""
    if row["who"] != "ours" or row["case"] not in ASKED or math.isnan(ratios[0]):
        return ""
    found = [what for what, ratio, least in zip(("speed", "memory"), ratios, ASKED[row["case"]], strict=True) if ratio >= least]
    return {2: "**both**", 1: " ".join(found), 0: "no"}[len(found)]


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
