"""The command line `detdiffusion`."""

import json
import logging
import sys
from importlib.metadata import version
from typing import Annotated, Any

import typer
from rich.table import Table

from data.artifacts.digests import DigestMemory
from data.artifacts.identity import short_name
from data.artifacts.manifest import Manifest
from data.artifacts.records import read_records
from data.artifacts.remote import default_remote
from data.artifacts.store import ArtifactStore, default_root
from data.errors import InvalidConfig, PipelineError
from flows import (
    cost_command,
    data_commands,
    gc_commands,
    plateau_command,
    remote_commands,
    store_commands,
)
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
from flows.request import Request
from flows.results import flat_results, newest_reports
from flows.run_config import RunConfig
from flows.run_graph import stage_steps
from flows.studies import CONCLUSION, read_study
from flows.study_presets import STUDIES
from tasks.execution.child import call
from tasks.execution.graph import Step
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
app.add_typer(plateau_command.app)
app.add_typer(data_commands.app)
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
    """Run a study: several runs, and answers to its questions.

    What is the same in them is made once.

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
    """Say what a run would make, and what that takes.

    For every step: whether its artifact is there or on the remote, and if not, why.
    """
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
    """Show the numbers of a run or study, and where its report is.

    Those of the newest finished run by default.
    """
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


def main() -> None:
    """Entry point: errors that a user can cause become one line and exit status 1."""
    logging.captureWarnings(capture=True)
    try:
        app()
    except PipelineError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
