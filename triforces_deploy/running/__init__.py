"""LAMMPS watched: one run that can be killed and continued, and sweeps of them."""
