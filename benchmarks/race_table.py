"""Table and picture of benchmarks/race.py: ``python benchmarks/race_table.py`` reads results/race.jsonl.

Of each contender, form, precision and size the fastest measurement counts, since whatever else runs on a machine only slows
them down. Writes results/race.md and results/race.png. The largest cell is an extrapolation: 20 GiB over the bytes per atom
at the size that was measured.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
NAMES = {"mace": "mace-torch, MACE medium", "esen": "fairchem-core, eSEN-sm", "orb": "orb-models, Orb-v3 conservative"}
ROOM = 20 * 2**30
Row = dict[str, Any]


def main() -> None:
    lines = (RESULTS / "race.jsonl").read_text().splitlines()
    rows: dict[tuple[Any, ...], Row] = {}
    for row in map(json.loads, lines):
        key = (row["rival"], row["precision"], row["atoms"], row["who"], row["form"])
        if row.get("seconds", math.inf) <= rows.get(key, {}).get("seconds", math.inf):
            rows[key] = row
    ordered = [rows[key] for key in sorted(rows)]
    (RESULTS / "race.md").write_text(table(ordered))
    picture(ordered)


def table(rows: list[Row]) -> str:
    """Ratios are to the rival's eager form at the same size and precision."""
    heading = ["against", "precision", "atoms", "who", "form", "µs/atom", "faster", "peak MiB", "smaller", "atoms in 20 GiB"]
    out = ["| " + " | ".join(heading) + " |", "|" + "---|" * len(heading)]
    eager = {(r["rival"], r["precision"], r["atoms"]): r for r in rows if r["who"] != "ours" and r["form"] == "eager"}
    for row in rows:
        cells = [NAMES[row["rival"]], row["precision"], str(row["atoms"]), row["who"], row["form"]]
        base = eager.get((row["rival"], row["precision"], row["atoms"]), {})
        if "error" in row:
            cells += [row["error"].replace("|", "/")[:60], "", "", "", ""]
        else:
            ratios = [f"{base[key] / row[key]:.1f}" if key in base else "" for key in ("seconds", "peak_bytes")]
            largest = ROOM / (row["peak_bytes"] / row["atoms"])
            per_atom, peak = row["seconds"] / row["atoms"] * 1e6, row["peak_bytes"] / 2**20
            cells += [f"{per_atom:.0f}", ratios[0], f"{peak:.0f}", ratios[1], f"{largest:.0f}"]
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out) + "\n"


def picture(rows: list[Row]) -> None:
    """Time and memory per atom of every form that ran, in float32, at the smallest size."""
    rivals = [name for name in NAMES if any(r["rival"] == name for r in rows)]
    figure, axes = plt.subplots(2, len(rivals), figsize=(3.4 * len(rivals), 4.6), squeeze=False, layout="constrained")
    for column, rival in enumerate(rivals):
        found = [r for r in rows if r["rival"] == rival and r["precision"] == "float32" and "error" not in r]
        smallest = min(r["atoms"] for r in found)
        found = sorted((r for r in found if r["atoms"] == smallest), key=lambda r: (r["who"] == "ours", -r["seconds"]))
        labels = [f"{'ours' if r['who'] == 'ours' else 'theirs'}, {r['form']}" for r in found]
        colours = ["tab:blue" if r["who"] == "ours" else "silver" for r in found]
        for axis, key, factor, unit in zip(
            axes[:, column], ("seconds", "peak_bytes"), (1e3, 2**-20), ("ms", "MiB"), strict=True
        ):
            bars = axis.barh(labels, [r[key] * factor / smallest for r in found], color=colours)
            axis.bar_label(bars, fmt="%.3g", padding=2, fontsize=7)
            axis.margins(x=0.2)
            axis.tick_params(labelsize=7)
            axis.set_xlabel(f"{unit} per atom", fontsize=8)
            axis.invert_yaxis()
        axes[0, column].set_title(f"{NAMES[rival]}\n{smallest} Si atoms, float32", fontsize=8)
    figure.savefig(RESULTS / "race.png", dpi=110)


if __name__ == "__main__":
    main()
