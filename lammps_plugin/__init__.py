"""LAMMPS: the loadable plugin and its own ML-IAP coupling."""
