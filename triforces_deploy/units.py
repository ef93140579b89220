"""Units inside the package: eV, Å, fs, u. Forces are eV/Å and stresses eV/Å³ in ASE's sign (positive when stretched)."""

from __future__ import annotations

LAMMPS_UNITS = "metal"
"""The LAMMPS unit style with eV and Å. Its time is ps, its pressure bar with the opposite sign of stress."""

BAR_PER_EV_A3 = 1.602176634e6
"""1 eV/Å³ in bar (the 2019 SI value of the elementary charge). LAMMPS' own constant is 1.6021765e6, 8e-8 smaller."""
