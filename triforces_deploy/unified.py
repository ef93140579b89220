"""The one class an artifact names. Its import path is part of the file format: do not move it.

``torch.load(file, weights_only=False)``, which is what LAMMPS' ML-IAP coupling does, gives an object of this class. Our
own readers open the same file with ``weights_only=True`` and take the state only.
"""

from __future__ import annotations

from functools import partial
from importlib.metadata import entry_points
from typing import Any

HOSTS = "triforces_deploy.hosts"


class Unified:
    """ML-IAP's unified contract over the state of an artifact.

    LAMMPS reads ``element_types``, ``rcutfac`` (half the cutoff), ``ndescriptors`` and ``nparams``, sets ``interface``, and
    calls the three ``compute_`` methods at every force evaluation.
    """

    ndescriptors = 1
    nparams = 1

    def __init__(self, state: dict[str, Any]) -> None:
        self.__setstate__(state)

    def __getstate__(self) -> dict[str, Any]:
        return self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = state
        self.interface: object = None
        self.element_types: list[str] = list(state["element_types"])
        self.rcutfac: float = state["cutoff"] / 2
        self._coupling: Any = None

    def compute_descriptors(self, data: object) -> None:
        """Nothing to do: energies and forces come together."""

    def compute_gradients(self, data: object) -> None:
        """Nothing to do: energies and forces come together."""

    def compute_forces(self, data: object) -> None:
        """Energies, pair forces and virial of LAMMPS' atoms; the host part is found through its entry point."""
        if self._coupling is None:
            from triforces_deploy.artifact import potential_from_state

            (coupling,) = entry_points(group=HOSTS, name="mliap")
            self._coupling = coupling.load()(partial(potential_from_state, self.state, "the ML-IAP model"))
        self._coupling.compute_forces(data, self.interface)
