"""Sizes in steps, so that a recorded evaluation still fits when a few atoms or pairs come and go."""

from __future__ import annotations

import math

from triforces_deploy.lammps_plugin.skin import Sizes

LEAST = 32
STEP = 1.12
"""From one size to the next; padding is then 6 % on average."""
SLACK = 1.3
"""A size is given up only when it is larger than this times what is needed: two steps, so that it does not go up and down."""


def bucket(needed: int) -> int:
    """The smallest size of the ladder 32, 36, 41, … that holds ``needed``."""
    step = max(0, math.ceil(math.log(max(needed, 1) / LEAST) / math.log(STEP)) - 1)
    while _size(step) < needed:  # rounding may take one more
        step += 1
    return _size(step)


def fitting(current: Sizes | None, needed: Sizes) -> Sizes:
    """The current sizes, each kept where it holds what is needed without being far too large."""
    if current is None:
        return Sizes(*map(bucket, needed))
    return Sizes(*(c if n <= c <= SLACK * bucket(n) else bucket(n) for c, n in zip(current, needed, strict=True)))


def _size(step: int) -> int:
    return math.ceil(LEAST * STEP**step)
