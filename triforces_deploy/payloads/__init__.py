"""Compiled forms of a potential: what each needs of a machine, and how it is run."""
