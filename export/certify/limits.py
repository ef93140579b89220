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
    "float64": Limits(
        relative=1e-9,
        energy=1e-9,
        step=2e-3,
        derivative=1e-6,
        finest=1e-6,
        jump_energy=1e-8,
        jump_force=1e-6,
        drift=2e-6,
    ),
    "float32": Limits(
        relative=1e-4,
        energy=1e-5,
        step=2e-2,
        derivative=5e-3,
        finest=1e-3,
        jump_energy=2e-4,
        jump_force=5e-3,
        drift=2e-6,
    ),
    "tf32": Limits(
        relative=2e-2,
        energy=1e-3,
        step=4e-2,
        derivative=5e-2,
        finest=1e-2,
        jump_energy=2e-2,
        jump_force=2e-1,
        drift=2e-5,
    ),
    "bf16": Limits(
        relative=1e-1,
        energy=5e-3,
        step=8e-2,
        derivative=2e-1,
        finest=2e-2,
        jump_energy=1e-1,
        jump_force=1.0,
        drift=2e-5,
    ),
}
"""Precision → limits. Those of float32 and bf16 are some times the rounding measured on a trained model; tf32, which has
not been measured, lies between them."""
