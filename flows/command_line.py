"""The command line `detdiffusion`."""

import json
import logging
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from data.artifacts.digests import DigestMemory
from data.artifacts.identity import short_name
from data.artifacts.manifest import Manifest
from data.artifacts.records import read_records
from data.artifacts.remote import default_remote
from data.artifacts.store import ArtifactStore, default_root, storage_errors
from data.attributes.options import ATTRIBUTES_NAME
from data.errors import (
    ArtifactMissing,
    InvalidConfig,
    InvalidDataset,
    PipelineError,
)
from flows import cost_command, gc_commands, remote_commands, store_commands
from flows.command_options import (
    FileOption,
    PresetArgument,
    SetOption,
    StudyOption,
    configured_run,
    new_counter,
    overrides_of,
    print_table,
    requested,
    show_digests,
)
from flows.nodes import REPORT
from flows.obtaining import carry_out, checked_graph
from flows.plateau import doubling, length_option, real_alone, validated
from flows.request import Request
from flows.results import flat_results, newest_artifact, newest_reports
from flows.run_config import RunConfig
from flows.run_graph import stage_steps
from flows.studies import CONCLUSION, read_study
from flows.study_presets import STUDIES
from models.metrics.options import MAIN
from tasks.execution.child import call
from tasks.execution.graph import Step
from tasks.execution.machine import available_cores
from tasks.execution.plan import plan as plan_steps
from tasks.pages.numbers import format_value

app = typer.Typer(
    name="detdiffusion",
    help="Turn a COCO-format detection data set into a better detector (DetDiffusion, CVPR 2024).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # whose library takes a third of the time that a help takes
    context_settings={"max_content_width": 120},
)
app.add_typer(cost_command.app)
app.add_typer(store_commands.app)
app.add_typer(gc_commands.app)
app.add_typer(remote_commands.app)

_DEVICE_SIZES = (80, 40, 24, 16, 8)
"""Of GPUs, GB."""

_INPUTS_SHOWN = 4
"""In the table of a plan."""


def _show_version(asked: bool) -> None:  # noqa: FBT001  # typer's callback
    if asked:
        typer.echo(version("detdiffusion"))
        raise typer.Exit


@app.callback()
def _options(
    *,
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Options before the command."""


@app.command()
def run(
    preset: PresetArgument = "demo",
    assignments: SetOption = None,
    config_file: FileOption = None,
    stage: Annotated[
        str | None, typer.Option(help="Run this stage alone; its inputs must be there.")
    ] = None,
) -> None:
    """Run every step of a preset that has no intact artifact yet."""
    config = configured_run(preset, assignments, config_file)
    store = ArtifactStore(default_root())
    graph = carry_out(store, Request("run", config.preset, config, stage))
    _show_artifact(store, stage_steps(graph, stage)[-1])
    if config.preset == "smoke" and stage is None:
        typer.echo(
            "Every step ran. Numbers of smoke mean nothing: its models are tiny and saw a few images. Next: "
            "detdiffusion plan PRESET, with the same options"
        )


@app.command()
def study(
    source: Annotated[
        str,
        typer.Argument(
            metavar="STUDY",
            help=f"TOML file: preset, seeds, options, runs.NAME, questions; or {', '.join(STUDIES)}.",
        ),
    ],
    assignments: SetOption = None,
    config_file: FileOption = None,
) -> None:
    """Run several runs, what is the same in them once, and answer the study's questions.

    Overrides go over the options that its runs have in common.
    """
    config = read_study(source, overrides_of(assignments, config_file))
    store = ArtifactStore(default_root())
    graph = carry_out(store, Request("study", config.name, config))
    for name in config.runs:
        typer.echo(name)
        _show_artifact(store, graph.find(f"{name}: {REPORT}"))
    typer.echo(config.name)
    _show_artifact(store, graph.find(CONCLUSION))


@app.command()
def plateau(
    preset: PresetArgument = "demo",
    assignments: SetOption = None,
    config_file: FileOption = None,
    detector: Annotated[str, typer.Option(help="`main`, or one of retrain.others.")] = MAIN,
    doublings: Annotated[int, typer.Option(min=1, help="At most.")] = 4,
) -> None:
    """Train the arm real ever twice as long, until that changes mAP by less than one standard error.

    The seeds are retrain.seeds, at least two. Every training is kept; the last line is the option to set.
    """
    config = configured_run(preset, assignments, config_file)
    if detector not in config.retrain.detectors:
        raise InvalidConfig(
            f"--detector {detector!r}: there are {', '.join(config.retrain.detectors)}"
        )
    seeds = config.retrain.seeds
    if len(seeds) < 2:
        raise InvalidConfig("a standard error needs at least two seeds: set retrain.seeds=[0,1,2]")
    store = ArtifactStore(default_root())
    before = _real_scores(store, config, detector, 1)
    for factor in (2**k for k in range(1, doublings + 1)):
        after = _real_scores(store, config, detector, factor)
        found = doubling(before, after)
        typer.echo(f"{'twice as long':>26}  {found.change:+.4f} ± {found.standard_error:.4f}")
        if found.is_plateau:
            typer.echo(f"{'plateau':>26}  {length_option(config, detector, factor // 2)}")
            return
        before = after
    typer.echo(
        f"{'no plateau yet':>26}  go on from {length_option(config, detector, 2**doublings)}"
    )


def _real_scores(
    store: ArtifactStore, config: RunConfig, detector: str, factor: int
) -> list[float]:
    """Train the arm real so many times as long; its mAP by seed."""
    longer = real_alone(config, detector, factor)
    for stage in ("ingest", "retrain"):
        graph = carry_out(store, Request("run", config.preset, longer, stage))
    found = validated(store, graph, config.retrain.seeds)
    scores = [float(manifest.summary["metrics"]["map"]) for manifest in found]
    shown = "  ".join(f"{score:.4f}" for score in scores)
    typer.echo(f"{length_option(config, detector, factor):>26}  mAP {shown}")
    return scores


def _show_artifact(store: ArtifactStore, step: Step) -> None:
    manifest = store.read(step.identity.kind, step.identity.key)
    if manifest is not None:
        _show_results(store, manifest)


def _show_results(store: ArtifactStore, manifest: Manifest) -> None:
    folder = store.root / manifest.reference
    results = manifest.summary.get("results", {})
    width = max([26, *map(len, results)])
    for name, value in results.items():
        typer.echo(f"{name:>{width}}  {format_value(value)}")
    for text in manifest.summary.get("answers", ()):
        typer.echo(f"{'answer':>{width}}  {text}")
    page = next(folder.glob("*.html"), folder)
    typer.echo(f"{'report' if page.is_file() else 'artifact':>{width}}  {page}")


@app.command()
def plan(
    preset: PresetArgument = "demo",
    assignments: SetOption = None,
    config_file: FileOption = None,
    study_source: StudyOption = None,
    *,
    memory: Annotated[
        bool,
        typer.Option(
            "--memory",
            help="Instead: what the generator's training takes on GPUs of several sizes.",
        ),
    ] = False,
) -> None:
    """Say for every step whether its artifact is there or on the remote, and if not, why."""
    store = ArtifactStore(default_root())
    if memory and study_source:
        raise InvalidConfig("--memory counts one preset's generator: leave --study out")
    if memory:
        _show_memory(configured_run(preset, assignments, config_file))
        return
    request = requested(preset, assignments, config_file, study_source)
    with DigestMemory(store.root, show_digests) as digests:
        graph, expected = checked_graph(store, request, digests)
    table = Table("stage", "step", "state", "why", "after", "artifact")
    for item in plan_steps(store, graph, read_records(store.root), default_remote()):
        step = item.step
        after = list(dict.fromkeys(source.name for source in step.inputs.values()))
        more = [f"{len(after) - _INPUTS_SHOWN} more"] if len(after) > _INPUTS_SHOWN else []
        table.add_row(
            ", ".join(step.stages),
            ", ".join(step.names),
            item.state,
            item.why,
            ", ".join([*after[:_INPUTS_SHOWN], *more]),
            short_name(step.identity.reference),
        )
    print_table(table)
    if expected.num_steps:
        typer.echo(expected)


def _show_memory(config: RunConfig) -> None:
    """Print what is chosen on each device, and the bytes by part."""
    typer.echo("counting on tensors without data, one to two minutes", err=True)
    counted = ("models.training.memory_table", "memory_table", config.train_generator)
    with new_counter() as counter:
        source, rows = counter.submit(
            call, *counted, config.synthesize.sampling, _DEVICE_SIZES
        ).result()
    table = Table(title=source, show_header=False)
    for name in dict.fromkeys(name for row in rows for name in row):
        table.add_row(name, *(_cell(row.get(name)) for row in rows))
    print_table(table)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.2f}"
    return "" if value is None else str(value).replace("=", " = ")  # where a line may break


@app.command()
def report(
    *,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help='Print one flat JSON object of numbers; an infinite one is "inf" or "-inf".',
        ),
    ] = False,
    study_name: Annotated[
        str | None, typer.Option("--study", help="Of the newest finished study of this name.")
    ] = None,
) -> None:
    """Show the numbers of the newest finished run or study and where its report is."""
    store = ArtifactStore(default_root())
    record, reports = newest_reports(store, study_name)
    if as_json:
        results = flat_results(store.manifest, record, reports)
        typer.echo(json.dumps(results, indent=1))
        return
    for name, manifest in reports.items():
        if record.what == "study":
            typer.echo(name.removesuffix(f": {REPORT}"))
        _show_results(store, manifest)


@app.command()
def inspect(
    dataset: Annotated[
        Path | None,
        typer.Argument(
            help="COCO instances JSON, or the folder of an ingest artifact; default: the newest."
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Image folder, where DATASET is a COCO JSON.")
    ] = None,
    attributes: Annotated[
        Path | None,
        typer.Option(help="attributes.parquet; default: the newest of the ingest artifact."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = Path(
        "inspect.html"
    ),
) -> None:
    """Write one HTML page that shows a data set: counts, images, what is hard, problems found."""
    from data.vocabulary.tables import Dataset  # noqa: PLC0415  # loads what other commands need not
    from tasks.pages.inspection import ingest_file, write_inspection  # noqa: PLC0415  # matplotlib takes a second

    store = ArtifactStore(default_root())
    title = f"Data set {dataset or 'of the newest run'}"
    with tempfile.TemporaryDirectory() as temporary, storage_errors(store.root):
        if dataset is not None and dataset.is_file():
            if images is None:
                raise InvalidConfig(f"{dataset} needs --images, the folder of its image files")
            found = ingest_file(dataset, images, Path(temporary) / "tables", available_cores())
        else:
            found = Dataset(_ingested(store, dataset))
            attributes = attributes or _newest_attributes(store, found.folder)
        page = Path(temporary) / "page.html"
        write_inspection(found, attributes, page, title)
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(page, output)
        except OSError as error:
            raise InvalidConfig(f"--output {output} cannot be written: {error.strerror}") from error
    typer.echo(output)


@app.command()
def new(
    instances: Annotated[Path, typer.Argument(help="Your COCO instances JSON.")],
    images: Annotated[Path, typer.Option(help="Folder that its file names are relative to.")],
    val: Annotated[
        Path | None,
        typer.Option(help="That of your validation images; none: INSTANCES is split, 4 to 1."),
    ] = None,
    val_images: Annotated[
        Path | None, typer.Option(help="Their folder; default: --images.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The new TOML file.")] = Path("my.toml"),
    group_by: Annotated[
        str | None,
        typer.Option(
            help="Regular expression: images whose names it matches alike, such as frames of a film by "
            "'(.*)_[0-9]+', are not torn apart. Default: one that keeps together images that are nearly the "
            "same, where many are and their names tell; else each image for itself."
        ),
    ] = None,
    *,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Look at a data set of yours, and write a TOML file of options for the preset fine-tune."""
    from flows.new_config import write_config  # noqa: PLC0415  # loads what runs need not
    from flows.own_data import NewConfig  # noqa: PLC0415  # loads what runs need not

    asked = NewConfig(instances, images, val, val_images, out, group_by, force)
    for note in write_config(asked, available_cores()):
        typer.echo(note, err=True)
    for path in asked.files:
        typer.echo(path)


def _ingested(store: ArtifactStore, folder: Path | None) -> Path:
    if folder is None:
        newest = newest_artifact(store, "ingest", lambda manifest: True)
        if newest is None:
            raise ArtifactMissing(
                f"no ingested data set under {store.root}: give a COCO JSON, or run `detdiffusion run demo`"
            )
        folder = store.root / newest.reference
    if not (folder / "objects.parquet").is_file():
        raise InvalidDataset(f"{folder} is neither a COCO JSON file nor a folder that ingest wrote")
    return folder


def _newest_attributes(store: ArtifactStore, dataset: Path) -> Path | None:
    """Attributes of this very ingest artifact, where there are some."""
    source = f"ingest/{dataset.resolve().name}"
    newest = newest_artifact(
        store, "label-attributes", lambda item: item.inputs["ingest"] == source
    )
    return store.root / newest.reference / ATTRIBUTES_NAME if newest else None


def main() -> None:
    """Entry point: errors that a user can cause become one line and exit status 1."""
    logging.captureWarnings(capture=True)
    try:
        app()
    except PipelineError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
