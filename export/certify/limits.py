"""What each precision is held to."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """Steps and bounds; a rounding that the precision explains must not fail, an error of the physics must."""

    relative: float
    """Of two evaluations that are equal in exact arithmetic, relative to the largest force or virial."""
    energy: float
    """eV/atom. The same for energies."""
    step: float
    """Å. Of finite differences: short enough for the next order to vanish, long enough for the rounding to."""
    derivative: float
    """Of finite differences, relative to the largest component."""
    finest: float
    """Å. How far a suspicious step is divided; at this length a smooth function changes by less than the two below."""
    jump_energy: float
    """eV."""
    jump_force: float
    """eV/Å."""
    drift: float
    """eV/atom/ps of the total energy at constant energy. 2e-6 is 2 meV/atom in a nanosecond: 8 K."""


LIMITS = {
    "float64": Limits(1e-9, 1e-9, 2e-3, 1e-6, 1e-6, 1e-8, 1e-6, 2e-6),
    "float32": Limits(1e-4, 1e-5, 2e-2, 5e-3, 1e-3, 2e-4, 5e-3, 2e-6),
    "tf32": Limits(2e-2, 1e-3, 4e-2, 5e-2, 1e-2, 2e-2, 2e-1, 2e-5),
    "bf16": Limits(1e-1, 5e-3, 8e-2, 2e-1, 2e-2, 1e-1, 1e-0, 2e-5),
}
"""Precision → limits. Those of float32 and below are a few times the rounding that was measured on trained models."""
