"""The pictures of a report, one function each; all return the path they wrote."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from triforces_deploy.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Columns = Mapping[str, NDArray[np.float64]]
INK, ACCENT, OTHER = "#31456a", "#d1495b", "#3d8b7d"


def parity(values: Path, out: Path) -> Path:
    """Predictions against labels: energy per atom and force components of held-out structures.

    Args:
        values: the arrays that ``tfdeploy evaluate -o`` writes.
        out: PNG.
    """
    figure = _figure(10, 4.6)
    with np.load(values) as data:
        panels = (("energy", "eV/atom", data["energy"]), ("force component", "eV/Å", data["forces"].reshape(-1, 2)))
    for k, (what, unit, pairs) in enumerate(panels):
        axes = figure.add_subplot(1, 2, k + 1)
        low, high = float(pairs.min()), float(pairs.max())
        axes.plot([low, high], [low, high], color="#999", lw=1)
        axes.plot(pairs[:, 0], pairs[:, 1], ".", ms=3 if k else 6, alpha=0.4 if k else 0.8, color=INK)
        axes.set(xlabel=f"labelled {what}, {unit}", ylabel=f"predicted, {unit}", title=f"Held-out defects: {what}")
    return _save(figure, out)


def learning(runs: Mapping[str, Columns], out: Path) -> Path:
    """Validation error of forces in the course of training; ``runs`` gives the columns of each log by label."""
    figure = _figure(7, 3.6)
    axes = figure.add_subplot()
    for (label, run), color in zip(runs.items(), (INK, ACCENT), strict=False):
        axes.plot(run["step"], run["val_forces_rmse"], "o-", ms=3, label=label, color=color)
    axes.set(xlabel="step", ylabel="force RMSE, meV/Å", yscale="log", title="Learning, validation trajectories")
    axes.legend(frameon=False)
    return _save(figure, out)


def log_curves(columns: Columns, out: Path) -> Path:
    """Every column of a training log against the step, (K, 2) each; the averaged weights' figures have their own points."""
    drawn = {name: points for name, points in columns.items() if len(points)}
    wide = min(4, max(1, len(drawn)))
    high = max(1, -(-len(drawn) // wide))
    figure = _figure(3.2 * wide, 2.4 * high)
    for k, (name, points) in enumerate(drawn.items()):
        axes = figure.add_subplot(high, wide, k + 1)
        checked = name.startswith("val_")
        axes.plot(points[:, 0], points[:, 1], "o-" if checked else "-", ms=3, lw=1, color=ACCENT if checked else INK)
        positive = bool((points[:, 1] > 0).all())
        axes.set(title=name, xlabel="step", yscale="log" if positive else "linear")
    return _save(figure, out)


def energies(runs: Mapping[str, Sequence[Columns]], n_atoms: int, out: Path) -> Path:
    """Total energy at constant energy, the last run of each label, relative to its start."""
    figure = _figure(7, 3.6)
    axes = figure.add_subplot()
    for (label, tables), color, style in zip(runs.items(), (INK, ACCENT), ("-", "--"), strict=False):
        run = tables[-1]
        axes.plot(
            run["Time"] - run["Time"][0], 1e6 * (run["TotEng"] - run["TotEng"][0]) / n_atoms, style, label=label, color=color
        )
    axes.set(xlabel="time, ps", ylabel="change of total energy, µeV/atom", title="Constant energy")
    axes.legend(frameon=False)
    return _save(figure, out)


def curves(
    lines: Columns,
    x: NDArray[np.float64],
    labels: tuple[str, str, str],
    out: Path,
    marks: Sequence[float] = (),
    limit: tuple[float, float] | None = None,
) -> Path:
    """Lines over one axis.

    Args:
        lines: label → (M,).
        x: (M,).
        labels: title, x axis, y axis.
        out: PNG.
        marks: places on the x axis to point at.
        limit: ends of the y axis.
    """
    figure = _figure(7, 3.6)
    axes = figure.add_subplot()
    for (label, y), color in zip(lines.items(), itertools.cycle((INK, ACCENT, OTHER, "#8a6d3b", "#777777")), strict=False):
        axes.plot(x, y, lw=1.3, label=label, color=color)
    for mark in marks:
        axes.axvline(mark, color="#bbbbbb", lw=0.8, ls=":")
    axes.set(title=labels[0], xlabel=labels[1], ylabel=labels[2])
    if limit is not None:
        axes.set_ylim(*limit)
    axes.legend(frameon=False)
    return _save(figure, out)


def thermo(x: Sequence[float], panels: Mapping[str, Sequence[float]], label: str, out: Path) -> Path:
    """Quantities of a simulation over one axis, one panel each.

    Args:
        x: (M,).
        panels: quantity → (M,).
        label: of the axis.
        out: PNG.
    """
    figure = _figure(7, 1.9 * len(panels) + 0.6)
    for k, (name, y) in enumerate(panels.items()):
        axes = figure.add_subplot(len(panels), 1, k + 1)
        axes.plot(x, y, lw=1.0, color=(INK, ACCENT, OTHER)[k % 3])
        axes.set_ylabel(name)
    figure.axes[-1].set_xlabel(label)
    return _save(figure, out)


def defect(data: Path, out: Path, bond: float = 2.85) -> Path:
    """A relaxed supercell with its defects made visible: atoms without four neighbours within ``bond`` Å, and guests.

    Args:
        data: LAMMPS data file with atom style atomic.
        out: PNG.
        bond: Å; longest bond counted.
    """
    from ase.io.lammpsdata import read_lammps_data
    from ase.neighborlist import neighbor_list

    atoms = read_lammps_data(data, atom_style="atomic")
    atoms.wrap()
    coordination = np.bincount(neighbor_list("i", atoms, bond), minlength=len(atoms))
    common = np.bincount(atoms.numbers).argmax()
    guest, odd = atoms.numbers != common, coordination != 4
    figure = _figure(6.5, 6)
    axes = figure.add_subplot(projection="3d")
    for mask, size, color, label in (
        (~odd & ~guest, 3, "#b9c2d0", f"{np.sum(~odd & ~guest)} four-fold"),
        (odd & ~guest, 60, ACCENT, f"{np.sum(odd & ~guest)} not four-fold"),
        (guest, 90, OTHER, f"{np.sum(guest)} of another element"),
    ):
        axes.scatter(*atoms.positions[mask].T, s=size, color=color, label=label, depthshade=True, linewidths=0)
    axes.set(xlabel="x, Å", ylabel="y, Å", zlabel="z, Å", title="The relaxed defect", box_aspect=atoms.cell.lengths())
    axes.legend(loc="upper left", frameon=False)
    return _save(figure, out)


def placed(
    centres: Mapping[str, NDArray[np.float64]], cell: NDArray[np.float64], title: str, out: Path, most: int = 20_000
) -> Path:
    """Where the defects of a supercell sit.

    Args:
        centres: label → (D, 3) Å.
        cell: (3, 3) Å, drawn as its edges.
        title: text.
        out: PNG.
        most: points of one label; of more, every so manieth is shown.
    """
    figure = _figure(6.5, 6)
    axes = figure.add_subplot(projection="3d")
    corners = np.array(list(itertools.product((0, 1), repeat=3)))
    for a, b in itertools.combinations(range(8), 2):
        if np.abs(corners[a] - corners[b]).sum() == 1:
            axes.plot(*np.stack([corners[a] @ cell, corners[b] @ cell]).T, color="#b9c2d0", lw=0.8)
    colors = itertools.cycle((ACCENT, OTHER, INK, "#e0a030", "#7b5ea7", "#777777"))
    for (label, points), color in zip(centres.items(), colors, strict=False):
        shown = points[:: max(1, len(points) // most)]
        size = float(np.clip(2000 / len(shown), 1, 60))
        axes.scatter(*shown.T, s=size, color=color, label=f"{len(points)} {label}", linewidths=0)
    axes.set(xlabel="x, Å", ylabel="y, Å", zlabel="z, Å", title=title, box_aspect=np.ptp(corners @ cell, axis=0))
    if centres:
        axes.legend(loc="upper left", frameon=False, markerscale=1.0)
    return _save(figure, out)


def _figure(width: float, height: float) -> Figure:
    """A figure that needs no display and leaves pyplot's global state alone."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _save(figure: Figure, out: Path) -> Path:
    with replacing(out) as part:
        figure.savefig(part, format="png")
    return out
