"""The commands of the artifact store: what is there, why, whether it is intact, what may go."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from data.artifacts.comparison import (
    Differences,
    Lineage,
    artifact_differences,
    differences,
    run_differences,
)
from data.artifacts.digests import DigestMemory
from data.artifacts.identity import short_name
from data.artifacts.inventory import find, short_keys
from data.artifacts.listing import Found, Listed, listed
from data.artifacts.manifest import Manifest
from data.artifacts.records import RECORDS_FOLDER, Record, read_records
from data.artifacts.remote import default_remote
from data.artifacts.remote_contents import RemoteContents
from data.artifacts.roots import Keep
from data.artifacts.store import ArtifactStore, default_root
from data.artifacts.verification import sampled
from data.errors import ArtifactMissing, InvalidConfig, PipelineError, StorageError
from flows.command_options import (
    FileOption,
    PresetArgument,
    SetOption,
    StudyOption,
    print_table,
    requested,
    show_digests,
    shown_progress,
    tracked,
)
from flows.opened_contents import Contents, JsonOption, RemoteOption, opened
from flows.readable import age, size, told_apart
from flows.rebuilding import rebuilt_differences
from flows.results import Read, flat_results, reports_of
from tasks.execution.plan import Planner

app = typer.Typer()

_KEY = re.compile(r"([a-z-]+/)?[0-9a-f]+")
_LONG = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{24,}\b")
"""A key or a digest, of which people read the beginning."""

_VERDICTS = {"hit": "a run takes it from the store", "remote": "a run takes it from the remote"}
_LINES_SHOWN = 20
"""Of each topic of a difference."""


@app.command()
def ls(
    *,
    as_json: JsonOption = False,
    sort: Annotated[Literal["age", "size", "kind"], typer.Option(help="What comes first.")] = "age",
    unused: Annotated[bool, typer.Option("--unused", help="What no run's record names.")] = False,
    runs: Annotated[bool, typer.Option("--runs", help="Runs instead of artifacts.")] = False,
    remote: RemoteOption = False,
) -> None:
    """List the artifacts, the newest first.

    With state, size, age, and the runs that use them.
    """
    contents = opened(remote=remote)
    records = contents.records()
    elsewhere, others = ([], []) if remote else _beyond(contents, records)
    if runs:
        _list_runs(contents, records, others, as_json=as_json)
        return
    order = {
        "age": lambda item: -item.changed,
        "size": lambda item: -item.bytes,
        "kind": lambda item: item.reference,
    }
    there = listed([*contents.found(), *elsewhere], [*records, *others], contents.pins())
    found = [item for item in sorted(there, key=order[sort]) if not (unused and item.runs)]
    short = short_keys({item.reference for item in there})
    if as_json:
        typer.echo(json.dumps([_as_json(item) for item in found], indent=1))
        return
    table = Table("kind", "key", "state", "size", "age", "step", "used by")
    for item in found:
        users = list(dict.fromkeys(record.name for record in item.runs))
        table.add_row(
            item.reference.partition("/")[0],
            short[item.reference],
            item.state,
            size(item.bytes),
            age(item.changed),
            item.step,
            ", ".join(users + ["pin"] * item.pinned),
        )
    print_table(table)


def _beyond(contents: Contents, records: Sequence[Record]) -> tuple[list[Found], list[Record]]:
    """Artifacts and runs' records that the remote alone has; none, with a note, if it cannot be used."""
    try:
        remote = default_remote()
        if remote is None:
            return [], []
        there = RemoteContents(remote)
        known = {record.id for record in records}
        return there.beyond({*contents.artifacts}), there.records(known)
    except PipelineError as error:
        typer.echo(f"listed without the remote: {error}", err=True)
        return [], []


def _as_json(item: Listed) -> dict[str, Any]:
    kind, _, key = item.reference.partition("/")
    return {
        "kind": kind,
        "key": key,
        "state": item.state,
        "bytes": item.bytes,
        "changed_at": datetime.fromtimestamp(item.changed, UTC).isoformat(),
        "step": item.step,
        "runs": [record.id for record in item.runs],
        "pinned": item.pinned,
    }


def _list_runs(
    contents: Contents, records: Sequence[Record], others: Sequence[Record], *, as_json: bool
) -> None:
    """List runs.

    Args:
        others: of runs that the remote alone has.
    """
    table, documents = Table("run", "of", "stage", "started", "steps there", "missing", "kept"), []
    there, pins = set(contents.artifacts), contents.pins()
    for record in sorted([*records, *others], key=lambda record: record.id, reverse=True):
        present = sum(step.reference in there for step in record.steps)
        missing = len(record.steps) - present
        is_pinned = f"{RECORDS_FOLDER}/{record.id}" in pins
        table.add_row(
            record.id,
            record.name if record.what == "run" else f"study {record.name}",
            record.stage or "all",
            record.created_at[:16],
            str(present),
            str(missing),
            "remote" if record in others else "pin" if is_pinned else "",
        )
        documents.append(
            {
                "id": record.id,
                "what": record.what,
                "name": record.name,
                "stage": record.stage,
                "created_at": record.created_at,
                "present": present,
                "missing": missing,
                "pinned": is_pinned,
                "remote": record in others,
            }
        )
    if as_json:
        typer.echo(json.dumps(documents, indent=1))
    else:
        print_table(table)


@app.command()
def why(
    what: Annotated[
        str, typer.Argument(metavar="STEP|KEY", help="A step as `plan` calls it, or a key.")
    ],
    preset: PresetArgument = "demo",
    assignments: SetOption = None,
    config_file: FileOption = None,
    study_source: StudyOption = None,
    *,
    remote: RemoteOption = False,
) -> None:
    """Say why a run would make a step or not.

    Of a key: why its artifact is kept.
    """
    if remote and not _KEY.fullmatch(what):
        raise InvalidConfig("--remote goes with a key alone: of a step `plan` says what is there")
    if _KEY.fullmatch(what):
        _show_keepers(opened(remote=remote), what)
        return
    store = ArtifactStore(default_root())
    with DigestMemory(store.root, show_digests) as digests:
        graph = requested(preset, assignments, config_file, study_source).graph(digests)
    step = graph.find(what)
    found = Planner(store, graph, read_records(store.root), default_remote()).look_up(step)
    verdict = _VERDICTS.get(found.state, "a run would make it")
    typer.echo(f"{what}  {short_name(step.identity.reference)}  {found.state}: {verdict}")
    if found.nearest is None:
        typer.echo(f"  {found.why or 'it is there and intact'}")
        return
    nearest = found.nearest
    typer.echo(f"  nearest: {short_name(nearest.reference)}, made on {nearest.created_at[:10]}")
    for (_, new), changes in found.causes.items():
        prefix = "" if new == step.identity.reference else f"{graph.steps[new].name}: "
        for change in changes:
            typer.echo(f"  {prefix}{change}")


def _show_keepers(contents: Contents, text: str) -> None:
    reference = find(text, contents.references)
    reason = contents.kept(Keep()).get(reference, "nothing, it would be removed")
    typer.echo(f"{reference}\n  kept by gc: {reason}")
    for record in contents.records():
        for step in record.steps:
            if step.reference == reference:
                typer.echo(f"  run {record.id} of {record.name}: {step.names[0]}")
    if reference in contents.pins():
        typer.echo("  pinned")
    for other in contents.artifacts:
        manifest = contents.read(other)
        names = (
            [name for name, of in manifest.inputs.items() if of == reference] if manifest else []
        )
        if names:
            typer.echo(f"  input of {short_name(other)}: {', '.join(names)}")


@app.command()
def diff(
    first: Annotated[
        str, typer.Argument(metavar="A", help="A key, or a run as `ls --runs` has it.")
    ],
    second: Annotated[str, typer.Argument(metavar="B", help="Another of the same sort.")],
    *,
    remote: RemoteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Say in what two artifacts or two runs differ.

    And what came first; status 1 if they do.
    """
    contents = opened(remote=remote)
    read = cache(contents.read)

    def known(reference: str) -> Any:
        manifest = read(reference)
        return manifest.identity if manifest else None

    records = {record.id: record for record in contents.records()}
    names = [find(text, contents.artifacts, records) for text in (first, second)]
    runs = [records[name] for name in names if name in records]
    lineage = Lineage(known)
    if len(runs) == 1:
        raise InvalidConfig(
            f"{first!r} and {second!r} are a run and an artifact: give two of a sort"
        )
    if runs:
        found = run_differences(read, lineage, *runs)
        if numbers := differences(_numbers(read, runs[0]), _numbers(read, runs[1])):
            found["numbers"] = numbers
    else:
        found = artifact_differences(lineage, *(_readable(read(name), name) for name in names))
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        _show_differences(found)
    raise typer.Exit(1 if found else 0)


def _readable(manifest: Manifest | None, name: str) -> Manifest:
    if manifest is None:
        raise ArtifactMissing(
            f"the manifest of {name} cannot be read: `detdiffusion verify` says more"
        )
    return manifest


def _numbers(read: Read, record: Record) -> Mapping[str, float]:
    """The numbers of a run's report; none where it has none."""
    reports = reports_of(read, record)
    return flat_results(read, record, reports) if reports else {}


def _show_differences(found: Mapping[str, Differences]) -> None:
    for topic, changes in found.items():
        typer.echo(topic)
        for name, pair in list(changes.items())[:_LINES_SHOWN]:
            typer.echo(_LONG.sub(r"\1", f"  {name}: {' → '.join(told_apart(*pair))}"))
        if len(changes) > _LINES_SHOWN:
            typer.echo(f"  {len(changes) - _LINES_SHOWN} more, with --json all")


@app.command()
def verify(
    keys: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY]…", help="Default: all.")
    ] = None,
    *,
    fast: Annotated[bool, typer.Option("--fast", help="Look at sizes alone.")] = False,
    sample: Annotated[
        str | None,
        typer.Option(metavar="N/T", help="The Nth of T parts of the artifacts, e.g. 1/10."),
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Move what is damaged away, so that it is made again.")
    ] = False,
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild", help="Also make what is intact anew, apart from the store, and compare."
        ),
    ] = False,
    remote: RemoteOption = False,
) -> None:
    """Read every file of the artifacts and compare its digest.

    Status 1 where one is damaged or unreadable.

    With --rebuild also where one is made anew with other bytes, or cannot be.
    """
    if remote and rebuild:
        raise InvalidConfig("--rebuild goes not with --remote: pull, and rebuild from the store")
    contents = opened(remote=remote)
    there = contents.artifacts
    chosen = [find(text, there) for text in keys] if keys else there
    if sample is not None:
        chosen = sampled(chosen, *_part(sample))
    damaged, intact = list[str](), list[str]()
    for reference in tracked(chosen, "verify"):
        try:
            files = contents.damage(reference, fast=fast)
        except StorageError as error:
            typer.echo(f"not looked at: {reference}: {error}")
            continue
        for name in files:
            typer.echo(f"damaged: {contents.where(reference, name)}")
        (damaged if files else intact).append(reference)
    typer.echo(f"{len(damaged + intact)} artifacts looked at, {len(damaged)} damaged")
    if repair and damaged:
        typer.echo(f"{len(contents.repair(damaged))} {contents.repaired}")
    same = [_rebuilds_the_same(reference) for reference in intact if rebuild]
    raise typer.Exit(0 if intact == chosen and all(same) else 1)


def _rebuilds_the_same(reference: str) -> bool:
    """Make an intact artifact of the store anew, and say in what the new one differs."""
    store = ArtifactStore(default_root())
    manifest = _readable(store.manifest(reference), reference)
    try:
        with shown_progress(reference) as progress:
            found, folder = rebuilt_differences(store, manifest, progress)
    except PipelineError as error:
        typer.echo(f"not compared: {reference}: {error}")
        return False
    if not found:
        typer.echo(f"the same: {reference}")
        return True
    typer.echo(f"different: {reference}, made anew in {folder}")
    _show_differences(found)
    return False


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    part, parts = map(int, match.groups()) if match else (0, 0)
    if not 1 <= part <= parts:
        raise InvalidConfig(f"--sample {text!r}: write N/T with N from 1 to T, e.g. 1/10")
    return part, parts
