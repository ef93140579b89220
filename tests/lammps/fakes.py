"""What LAMMPS' two Python couplings hand to a model, traps included; ghosts are explicit images of a periodic structure.

Written after the Cython sources of LAMMPS' ML-IAP package (CPU) and its Kokkos variant, releases 22Jul2025 to 4Jul2026.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from torch import Tensor
from vesin import NeighborList


class Written:
    """A property that can only be written, like Cython's without a getter."""

    def __init__(self, check: Callable[[Any, Any], Any]) -> None:
        self._check = check

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        raise AttributeError(f"attribute '{self._name}' of MLIAPDataPy is not readable")

    def __set__(self, instance: Any, value: Any) -> None:
        instance.written[self._name] = self._check(instance, value)


class Common:
    """Sizes, lists and the pair tally that both couplings share."""

    def __init__(self, atoms: Atoms, cutoff: float, elements: Sequence[str], ghostneigh: bool = False) -> None:
        """``elements`` are those of the potential; atoms of any other are NULL types of a hybrid style."""
        self.written: dict[str, Any] = {}
        ids = [list(elements).index(s) if s in elements else -1 for s in atoms.get_chemical_symbols()]
        listed = [i for i, e in enumerate(ids) if e >= 0]
        self.nlocal, self.nlistatoms = len(atoms), len(listed)
        owner, pairs = _with_images(atoms, listed, cutoff)
        self.owner = owner
        self.ntotal = len(owner)
        if ghostneigh:  # ghosts are centres, too; the pairs to atoms owned here are those we know
            pairs += [(j, i, -r) for i, j, r in pairs if j >= self.nlocal]
            listed += sorted({i for i, _, _ in pairs if i >= self.nlocal})
        self.natomneigh, self.npairs = len(listed), len(pairs)
        self._elems = np.array([ids[i] for i in owner], dtype=np.int32)
        self._iatoms = np.array(listed, dtype=np.int32)
        self._pair_i = np.array([i for i, _, _ in pairs], dtype=np.int32)
        self._pair_j = np.array([j for _, j, _ in pairs], dtype=np.int32)
        self._rij = np.array([r for _, _, r in pairs]).reshape(-1, 3)
        self.f = np.zeros((self.ntotal, 3))
        self.virial = np.zeros((3, 3))

    def _given(self, array: NDArray[Any]) -> NDArray[Any]:
        if len(array) == 0:
            raise ValueError("Invalid shape in axis 0: 0.")
        return array

    @property
    def elems(self) -> NDArray[Any]:
        return self._given(self._elems)

    @property
    def iatoms(self) -> NDArray[Any]:
        return self._given(self._iatoms)

    @property
    def pair_i(self) -> NDArray[Any]:
        return self._given(self._pair_i)

    @property
    def pair_j(self) -> NDArray[Any]:
        return self._given(self._pair_j)

    @property
    def rij(self) -> Any:
        return self._given(self._rij)

    def _tally(self, fij: NDArray[Any]) -> None:
        view = memoryview(fij)
        if view.format != "d" or not view.c_contiguous or view.readonly or view.ndim != 2:
            raise ValueError("Buffer dtype mismatch, expected 'double', C-contiguous and writable")
        if len(fij) == 0:
            raise IndexError("Out of bounds on buffer access (axis 0)")
        assert len(fij) == self.npairs, "LAMMPS would read past the end"
        np.add.at(self.f, self._pair_i, fij)
        np.subtract.at(self.f, self._pair_j, fij)
        self.virial -= np.einsum("pa,pb->ab", self._rij, fij)

    def forces(self) -> NDArray[Any]:
        """What LAMMPS has after sending the forces on ghosts home."""
        total = np.zeros((self.nlocal, 3))
        np.add.at(total, self.owner, self.f)
        return total


class PlainData(Common):
    """The CPU coupling: arrays of length zero raise, energies can only be written, nothing exchanges."""

    def _energy(self, value: Any) -> float:
        return float(value)

    def _eatoms(self, value: Any) -> NDArray[Any]:
        view = memoryview(value)
        if view.format != "d" or self.nlistatoms == 0:
            raise ValueError("Buffer dtype mismatch, or attempt to set NULL eatoms")
        if view.shape != (self.nlistatoms,):
            raise ValueError("got differing extents in dimension 0")
        return np.array(value)

    energy = Written(_energy)
    eatoms = Written(_eatoms)

    def update_pair_forces(self, fij: Any) -> None:
        self._tally(fij)


class KokkosData(Common):
    """The Kokkos coupling of a CPU build: energies are a view to copy into, ghost rows can be exchanged.

    Args:
        defect: 'stride' exchanges rows as releases of October to December 2025 do on GPUs; 'adjoint' forgets to add.
    """

    def __init__(self, *args: Any, defect: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._view = np.full(self.nlistatoms, np.nan)
        self._defect = defect
        self.calls: list[tuple[str, int]] = []

    most_columns = 3

    def _energy(self, value: Any) -> float:
        return float(value)

    energy = Written(_energy)

    @property
    def eatoms(self) -> Any:
        return self._given(self._view)

    @property
    def numneighs(self) -> NDArray[Any]:
        raise AssertionError("a view of the wrong type in Kokkos builds: do not touch")

    def update_pair_forces(self, fij: Any) -> None:
        self._tally(fij if isinstance(fij, np.ndarray) else fij.detach().numpy().astype(np.double))

    def update_pair_forces_gpu(self, fij: Any) -> None:
        raise AssertionError("takes a bare address; in CPU builds there is a safer way")

    def forward_exchange(self, source: Tensor, target: Tensor, width: int) -> None:
        self._check(source, target, width)
        self.calls.append(("forward", width))
        target.copy_(source)
        if self._defect == "stride" and width > 1:
            # The offset of a number in the buffer was counted twice: element (i, j) came from slot i·n + 2j.
            flat = torch.zeros(self.ntotal * width + 2 * width, dtype=source.dtype)
            flat[: self.ntotal * width] = source[self.owner].flatten()
            for row in range(self.nlocal, self.ntotal):
                for column in range(width):
                    target[row, column] = flat[row * width + 2 * column]
            return
        target[self.nlocal :] = source[self.owner[self.nlocal :]]

    def reverse_exchange(self, source: Tensor, target: Tensor, width: int) -> None:
        self._check(source, target, width)
        self.calls.append(("reverse", width))
        target.copy_(source)
        if self._defect != "adjoint":
            target.index_add_(0, torch.from_numpy(self.owner[self.nlocal :]), source[self.nlocal :])
        target[self.nlocal :] = 0

    def _check(self, source: Any, target: Any, width: int) -> None:
        if not (isinstance(source, Tensor) and isinstance(target, Tensor)):
            raise AttributeError("'numpy.ndarray' object has no attribute 'ptr'")
        assert source.dtype == target.dtype
        assert source.dtype in (torch.float32, torch.float64)
        assert source.shape == target.shape == (self.ntotal, width)
        assert source.is_contiguous()
        assert target.is_contiguous()
        assert source.data_ptr() != target.data_ptr() or self.ntotal == 0
        assert width <= self.most_columns, "LAMMPS would write past the end of its buffer"


class GpuData(KokkosData):
    """The Kokkos coupling on CUDA, with tensors in place of cupy's arrays: no numpy, any width, forces by bare address."""

    most_columns = 1 << 20
    complete = False
    """Whether somebody has waited for what the GPU computes; each side must before it reads what the other has made."""

    @property
    def rij(self) -> Any:
        assert self.complete
        return self._given(self._rij)

    def _given(self, array: NDArray[Any]) -> Any:
        return torch.from_numpy(array)

    def update_pair_forces(self, fij: Any) -> None:
        raise AssertionError("goes through numpy")

    def update_pair_forces_gpu(self, fij: Any) -> None:
        assert self.complete
        self.complete = False
        assert fij.dtype == torch.float64
        assert fij.is_contiguous()
        behind = (ctypes.c_double * fij.numel()).from_address(fij.data_ptr())
        self._tally(np.array(list(behind)).reshape(-1, 3))


Pair = tuple[int, int, NDArray[Any]]


def _with_images(atoms: Atoms, listed: list[int], cutoff: float) -> tuple[NDArray[np.int64], list[Pair]]:
    """Owner of each atom and ghost, and the directed pairs of listed atoms; a ghost for every image that a pair needs."""
    if len(atoms) == 0:
        return np.zeros(0, np.int64), []
    cell = atoms.cell.complete().array
    i, j, shift = NeighborList(cutoff=cutoff, full_list=True).compute(atoms.positions, cell, atoms.pbc, "ijS")
    owner = list(range(len(atoms)))
    ghosts: dict[tuple[int, ...], int] = {}
    pairs: list[Pair] = []
    for a, b, s in zip(i.astype(int), j.astype(int), shift.astype(int), strict=True):
        index = int(b)
        if s.any():
            key = (int(b), *map(int, s))
            if key not in ghosts:
                ghosts[key] = len(owner)
                owner.append(int(b))
            index = ghosts[key]
        if a in listed and b in listed:
            pairs.append((int(a), index, atoms.positions[b] + s @ cell - atoms.positions[a]))
    return np.array(owner, dtype=np.int64), sorted(pairs, key=lambda pair: listed.index(pair[0]))
