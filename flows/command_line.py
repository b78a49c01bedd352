"""The command line `detdiffusion`."""

import json
import logging
import os
import signal
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table

from data.errors import (
    ArtifactMissing,
    InvalidConfig,
    InvalidDataset,
    PipelineError,
    ServiceUnavailable,
)
from data.store import ArtifactStore, Manifest, StageIdentity, explain_miss, storage_errors
from data.tables import Dataset
from flows.presets import RunConfig, build_run, merge
from tasks.cards import format_value
from tasks.execution import available_cores, default_root
from tasks.stages import STAGES, identify

app = typer.Typer(
    name="detdiffusion",
    help="Turn a COCO-format detection data set into a better detector (DetDiffusion, CVPR 2024).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

PresetArgument = Annotated[str, typer.Argument(help="smoke, demo, coco-256 or coco-512.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override an option, e.g. --set train_generator.num_steps=500; may be repeated. "
        "Values are JSON, or text where they are not.",
    ),
]
FileOption = Annotated[
    Path | None, typer.Option("--config", help="TOML file of overrides; --set goes over it.")
]


def parse_assignment(text: str) -> dict[str, Any]:
    """Turn `a.b=1` into nested options.

    >>> parse_assignment("train_generator.num_steps=500")
    {'train_generator': {'num_steps': 500}}

    Raises:
        InvalidConfig: there is no `=`.
    """
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise InvalidConfig(f"--set {text!r}: write KEY=VALUE, e.g. train_generator.num_steps=500")
    try:
        options: Any = json.loads(value)
    except json.JSONDecodeError:
        options = value
    for part in reversed(name.split(".")):
        options = {part: options}
    return dict(options)


def configured_run(preset: str, assignments: list[str] | None, file: Path | None) -> RunConfig:
    """Build a run from the command line's preset, file and assignments.

    Raises:
        InvalidConfig: an option or value does not exist, or the file cannot be read.
    """
    overrides: dict[str, Any] = {}
    if file is not None:
        try:
            overrides = tomllib.loads(file.read_text())
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidConfig(f"--config {file}: {error}") from error
    for text in assignments or []:
        overrides = merge(overrides, parse_assignment(text))
    return build_run(preset, overrides)


@app.command()
def run(
    preset: PresetArgument = "demo",
    assignments: SetOption = None,
    config_file: FileOption = None,
    stage: Annotated[
        str | None, typer.Option(help="Run this stage alone; its inputs must be there.")
    ] = None,
) -> None:
    """Run every stage of a preset that has no intact artifact yet."""
    config = configured_run(preset, assignments, config_file)
    store = ArtifactStore(default_root())
    identities = _chosen(identify(config.stage_configs()), stage)
    store.create_root()
    manifests = [store.lookup(item.stage, item.key) for item in identities]
    hits = [manifest for manifest in manifests if manifest is not None]
    if _has_server() or len(hits) < len(manifests):
        _run_flow(config, stage)
    else:
        typer.echo("Every stage is a hit; nothing to run.")
        for manifest in hits:
            store.mark_latest(manifest)
    last = store.read(identities[-1].stage, identities[-1].key)
    if last is not None:
        _show_results(store, last)


def _chosen(identities: dict[str, StageIdentity], stage: str | None) -> list[StageIdentity]:
    if stage is not None and stage not in identities:
        raise InvalidConfig(f"unknown stage {stage!r}: choose one of {', '.join(identities)}")
    return [item for name, item in identities.items() if stage in (None, name)]


def _has_server() -> bool:
    """Whether a Prefect server is configured.

    Raises:
        ServiceUnavailable: it is, and does not answer.
    """
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        return False
    try:
        httpx.get(f"{url}/health", timeout=10).raise_for_status()
    except httpx.HTTPError as error:
        raise ServiceUnavailable(
            f"no Prefect server answers at PREFECT_API_URL={url} ({error}): start one with `make up`, "
            "or unset the variable to run without"
        ) from error
    return True


def _run_flow(config: RunConfig, stage: str | None) -> None:
    """Run flows in this process, with a temporary Prefect server where none is configured.

    Raises:
        PipelineError: what made the run fail.
    """
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
    if sys.stderr.isatty():
        os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
    from flows import stages  # noqa: PLC0415  # Prefect reads the variables above at import

    signal.signal(signal.SIGTERM, _exit)  # by default it would leave Prefect's server behind
    flow = stages.end_to_end if stage is None else getattr(stages, STAGES[stage].option)
    state = flow(config, return_state=True)
    if not state.is_completed():
        state.result()


def _exit(number: int, _: object) -> None:
    sys.exit(128 + number)


def _show_results(store: ArtifactStore, manifest: Manifest) -> None:
    folder = store.path(manifest.stage, manifest.key)
    for name, value in manifest.summary.get("results", {}).items():
        typer.echo(f"{name:>26}  {format_value(value)}")
    report_page = folder / "report.html"
    typer.echo(
        f"{'report' if report_page.exists() else 'artifact':>26}  "
        f"{report_page if report_page.exists() else folder}"
    )


@app.command()
def plan(
    preset: PresetArgument = "demo",
    assignments: SetOption = None,
    config_file: FileOption = None,
) -> None:
    """Say for every stage whether its artifact is there, and if not, why."""
    config = configured_run(preset, assignments, config_file)
    store = ArtifactStore(default_root())
    table = Table("stage", "state", "key", "why")
    for identity in identify(config.stage_configs()).values():
        if store.lookup(identity.stage, identity.key):
            table.add_row(identity.stage, "hit", identity.key, "")
        else:
            latest = store.latest(identity.stage)
            state = "miss" if latest is None else "stale"
            table.add_row(identity.stage, state, identity.key, explain_miss(identity, latest))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


@app.command()
def report(
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one flat JSON object of numbers.")
    ] = False,
) -> None:
    """Show the numbers of the newest run and where its report is."""
    store = ArtifactStore(default_root())
    manifest = store.latest("evaluate")
    if manifest is None:
        raise ArtifactMissing(
            f"no evaluation under {store.root}: run `detdiffusion run demo` first"
        )
    if as_json:
        typer.echo(json.dumps(flat_results(store, manifest), indent=1))
    else:
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
    from tasks.inspect import ingest_file, write_inspection  # noqa: PLC0415  # matplotlib takes a second

    store = ArtifactStore(default_root())
    title = f"Data set {dataset or 'of the newest run'}"
    with tempfile.TemporaryDirectory() as temporary, storage_errors(output.resolve().parent):
        if dataset is not None and dataset.is_file():
            if images is None:
                raise InvalidConfig(f"{dataset} needs --images, the folder of its image files")
            found = ingest_file(dataset, images, Path(temporary), available_cores())
        else:
            found = _ingested(store, dataset)
            attributes = attributes or _newest_attributes(store, found)
        write_inspection(found, attributes, output, title)
    typer.echo(output)


def _ingested(store: ArtifactStore, folder: Path | None) -> Dataset:
    newest = store.latest("ingest")
    if folder is None and newest is None:
        raise ArtifactMissing(
            f"no ingested data set under {store.root}: give a COCO JSON, or run `detdiffusion run demo`"
        )
    found = Dataset(folder or store.path("ingest", newest.key if newest else ""))
    if not (found.folder / "objects.parquet").is_file():
        raise InvalidDataset(
            f"{found.folder} is neither a COCO JSON file nor a folder that ingest wrote"
        )
    return found


def _newest_attributes(store: ArtifactStore, dataset: Dataset) -> Path | None:
    """Attributes of this very ingest artifact, where there are some."""
    for manifest in store.manifests("extract-attributes"):
        if manifest.inputs.get("ingest") == dataset.folder.resolve().name:
            return store.path(manifest.stage, manifest.key) / "attributes.parquet"
    return None


def flat_results(store: ArtifactStore, manifest: Manifest) -> dict[str, float]:
    """The evaluation's numbers with the cost of the whole run.

    `seconds_total` is the sum of the stages' wall-clock times when they were made, `peak_memory_gb`
    the highest resident memory of the process tree in any of them.
    """
    stages = [manifest]
    stages += filter(None, (store.read(name, key) for name, key in manifest.inputs.items()))
    return {
        **manifest.summary["results"],
        "seconds_total": round(sum(item.seconds for item in stages), 1),
        "peak_memory_gb": round(max(item.peak_memory_bytes for item in stages) / 1e9, 2),
    }


def main() -> None:
    """Entry point: errors that a user can cause become one line and exit status 1."""
    logging.captureWarnings(capture=True)
    try:
        app()
    except PipelineError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
