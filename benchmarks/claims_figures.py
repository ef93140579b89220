"""The figures of benchmarks/claims.py by what they belong to, and their means, changes and standard errors."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

RESULTS = Path(__file__).parent / "results"
KINDS = ("energy_mae", "forces_mae")
MINUS = "\N{MINUS SIGN}"
Row = dict[str, Any]
Group = dict[int, Row]
"""By seed."""


class Key(NamedTuple):
    """What contenders must share to be compared."""

    set: str
    backbone: str
    steps: int
    size: int


Groups = dict[Key, dict[str, Group]]
"""Contenders by what they share, then by name."""


def read_rows() -> list[Row]:
    """All runs that were recorded."""
    return [json.loads(line) for line in (RESULTS / "claims.jsonl").read_text().splitlines()]


def grouped(rows: list[Row]) -> Groups:
    """In the order of sets, backbones, steps and sizes."""
    groups: dict[Key, dict[str, Group]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        groups[Key(row["set"], row["backbone"], row["steps"], row["size"])][row["contender"]][row["seed"]] = row
    return {key: groups[key] for key in sorted(groups)}


def changes(group: Group, other: Group, kind: str) -> list[float]:
    """Percent, of each seed that both have: contenders of a seed were fitted to the same structures."""
    return [100 * (group[seed][kind] / other[seed][kind] - 1) for seed in sorted(group.keys() & other.keys())]


def error(values: list[float]) -> float:
    """Standard error of the mean; infinite of one value."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.inf


def mean(values: list[float], form: str, unit: str = "") -> str:
    """With its standard error, where there is one."""
    if not values:
        return ""
    spread = f" ± {error(values):{form.lstrip('+')}}" if len(values) > 1 else ""
    return f"{np.mean(values):{form}}{spread}{unit}".replace("-", MINUS)
