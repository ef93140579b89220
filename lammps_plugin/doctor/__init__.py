"""Which way to LAMMPS works on this machine, and what the others lack."""
