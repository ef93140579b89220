"""From a trained atomistic graph network to production molecular dynamics.

``import triforces_deploy`` is cheap on purpose: it imports no torch, so that ``tfdeploy --help`` and LAMMPS start at once.
"""

__version__ = "0.1.0"
