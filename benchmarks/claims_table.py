"""Tables and picture of benchmarks/claims.py: ``python benchmarks/claims_table.py`` reads results/claims.jsonl.

Each figure is a mean over seeds ± its standard error. Differences are taken seed by seed, since the contenders of a seed were
fitted to the same structures, and in percent of the baseline with matched parameters. Writes results/claims.md and claims.png.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from claims_figures import KINDS, RESULTS, Group, Groups, Row, changes, error, grouped, mean, read_rows
from claims_verdicts import AGAINST, verdicts, what_decided
from matplotlib.ticker import LogLocator

from triforces_deploy.files import replacing

MAIN = ("baseline", "matched", "streams", "triforces")
COMPARED = (AGAINST, "streams", "triforces")
UNITS = ("energy MAE, meV/atom", "force MAE, meV/Å")


def main() -> None:
    write_table()
    write_picture()


def write_table() -> None:
    """Read the lines and write what they say."""
    rows = read_rows()
    groups = grouped(rows)
    parts = {
        "Main contenders": f"{_note()}\n\n{summary(groups)}",
        "What decided": "\n".join(what_decided(groups)) + "\n",
        "Claims": f"Rules: benchmarks/claims_verdicts.py.\n\n{verdicts(groups)}",
        "All contenders": table(groups),
        "Time": f"{time_spent(rows)}\n",
    }
    with replacing(RESULTS / "claims.md") as part:
        part.write_text("\n".join(f"## {title}\n\n{text}" for title, text in parts.items()))


def _note() -> str:
    return (
        "Energy MAE in meV/atom | force MAE in meV/Å, on other trajectories; changes in percent of the backbone of equal "
        "parameters without streams."
    )


def summary(groups: Groups) -> str:
    """A row for each set, backbone and size that has what is compared and more than one seed."""
    heading = ["set", "backbone", "structures", "seeds", *COMPARED, "streams, %", "TriForces, %"]
    out = ["| " + " | ".join(heading) + " |", "|" + "---|" * len(heading)]
    for key, contenders in groups.items():
        seeds = set.intersection(*(set(contenders.get(name, {})) for name in COMPARED))
        if len(seeds) < 2:
            continue
        main = {name: {seed: contenders[name][seed] for seed in sorted(seeds)} for name in COMPARED}
        cells = [key.set, key.backbone, str(key.size), str(len(seeds))]
        cells += [_both([mean([r[kind] for r in main[name].values()], ".0f") for kind in KINDS]) for name in COMPARED]
        for name in ("streams", "triforces"):
            cells.append(_both([mean(changes(main[name], main[AGAINST], kind), "+.0f") for kind in KINDS]))
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out) + "\n"


def _both(texts: list[str]) -> str:
    return " \\| ".join(texts)


def table(groups: Groups) -> str:
    """A row for each contender at each size."""
    heading = ["set", "backbone", "steps", "structures", "contender", "parameters", "seeds", *UNITS,
               f"energy against {AGAINST}", f"forces against {AGAINST}", "processor seconds a fit"]  # fmt: skip
    out = ["| " + " | ".join(heading) + " |", "|" + "---|" * len(heading)]
    for key, contenders in groups.items():
        for contender, group in contenders.items():
            rows = list(group.values())
            cells = [
                key.set,
                key.backbone,
                str(key.steps),
                str(key.size),
                contender,
                str(rows[0]["parameters"]),
                str(len(rows)),
            ]
            cells += [mean([r[kind] for r in rows], ".1f") for kind in KINDS]
            other = contenders.get(AGAINST, {})
            for kind in KINDS:
                cells.append("" if contender == AGAINST else mean(changes(group, other, kind), "+.0f", " %"))
            cells.append(f"{np.median([r['seconds'] for r in rows]):.0f}")
            out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out) + "\n"


def time_spent(rows: list[Row]) -> str:
    """Of all runs, by the median of those that differ in their seed alone; a pretraining of several fits counts once."""
    fits: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    before: dict[tuple[Any, ...], dict[int, float]] = defaultdict(dict)
    for row in rows:
        fits[row["set"], row["backbone"], row["contender"], row["steps"], row["size"]].append(row["seconds"])
        if row["pretraining_steps"]:
            start = row["set"], row["backbone"], row["contender"], row["pretraining_steps"]
            before[start][row["seed"]] = row["pretraining_seconds"]
    sums = [
        sum(float(np.median(group)) * len(group) for group in part) / 60
        for part in (list(fits.values()), [list(group.values()) for group in before.values()])
    ]
    return (
        f"{len(rows)} fits take {sums[0]:.0f} minutes of a processor and {sum(map(len, before.values()))} pretrainings "
        f"{sums[1]:.0f}: {sum(sums) / 120:.1f} hours on two cores. Labels not counted."
    )


def write_picture() -> None:
    """A row for each set and backbone: bars of all contenders at the smallest size, then errors over several sizes."""
    groups = {key: own for key, own in grouped(read_rows()).items() if any(len(group) > 1 for group in own.values())}
    lines = list(dict.fromkeys(key[:3] for key in groups))
    if not lines:
        return
    figure, axes = plt.subplots(len(lines), 4, figsize=(17, 3.4 * len(lines)), squeeze=False, layout="constrained")
    for line, (name, backbone, steps) in zip(axes, lines, strict=True):
        own = {key.size: found for key, found in groups.items() if key[:3] == (name, backbone, steps)}
        for k, (kind, unit) in enumerate(zip(KINDS, UNITS, strict=True)):
            _bars(line[k], own[min(own)], kind)
            line[k].set_xlabel(f"{unit}; {name}, {backbone}, {min(own)} structures", fontsize=8)
            if len(own) == 1:
                line[2 + k].set_axis_off()
                continue
            _lines(line[2 + k], own, kind)
            line[2 + k].set_ylabel(unit, fontsize=8)
            line[2 + k].set_xlabel(f"structures; {name}, {backbone}, {steps} steps", fontsize=8)
    with replacing(RESULTS / "claims.png") as part:
        figure.savefig(part, dpi=80, format="png")
    plt.close(figure)


def _bars(axis: Any, contenders: dict[str, Group], kind: str) -> None:
    values = {contender: [row[kind] for row in group.values()] for contender, group in contenders.items()}
    errors = [error(v) if len(v) > 1 else 0.0 for v in values.values()]
    colours = ["tab:blue" if contender in MAIN else "silver" for contender in values]
    labels = [contender + " (1 seed)" * (len(v) == 1) for contender, v in values.items()]
    axis.barh(labels, [float(np.mean(v)) for v in values.values()], xerr=errors, color=colours, capsize=3)
    axis.tick_params(labelsize=7)
    axis.invert_yaxis()


def _lines(axis: Any, own: dict[int, dict[str, Group]], kind: str) -> None:
    for contender, points in _curves(own, kind):
        errors = [error(v) if len(v) > 1 else 0.0 for v in points.values()]
        means = [float(np.mean(v)) for v in points.values()]
        axis.errorbar(list(points), means, errors, marker="o", capsize=3, label=contender)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks(list(own), [str(size) for size in own])
    axis.minorticks_off()
    axis.yaxis.set_major_locator(LogLocator(subs=range(1, 10)))
    axis.yaxis.set_major_formatter("{x:.0f}")
    axis.tick_params(labelsize=7)
    axis.legend(fontsize=6)


def _curves(own: dict[int, dict[str, Group]], kind: str) -> Iterator[tuple[str, dict[int, list[float]]]]:
    for contender in MAIN:
        yield (
            contender,
            {size: [r[kind] for r in found[contender].values()] for size, found in own.items() if contender in found},
        )


if __name__ == "__main__":
    main()
