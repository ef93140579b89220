"""Units inside the package: eV, Å, fs, u. Forces are eV/Å and stresses eV/Å³ in ASE's sign (positive when stretched)."""

from __future__ import annotations

LAMMPS_UNITS = "metal"
"""The LAMMPS unit style with eV and Å. Its time is ps, its pressure bar with the opposite sign of stress."""

LAMMPS_BAR = 1.6021765e6
"""1 eV/Å³ in bar as LAMMPS has it (nktv2p of units metal), so that its own rounding is undone exactly; the 2019 SI value is
1.602176634e6."""
