"""The commands of the artifact store: what is there, why, whether it is intact, what may go."""

import json
import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.table import Table

from data.artifacts.comparison import (
    Differences,
    Lineage,
    artifact_differences,
    differences,
    run_differences,
)
from data.artifacts.digests import DigestMemory
from data.artifacts.garbage import collect, garbage
from data.artifacts.inventory import (
    artifacts,
    find,
    folders,
    require_store,
    short_keys,
    tree,
    unfinished,
)
from data.artifacts.listing import Listed, listed
from data.artifacts.manifest import Manifest
from data.artifacts.records import RECORDS_FOLDER, Record, read_records
from data.artifacts.remote import Remote, default_remote, required_remote
from data.artifacts.roots import Keep, Roots, pin, pinned, unpin
from data.artifacts.store import ArtifactStore, default_root
from data.artifacts.trash import TRASH_FOLDER
from data.artifacts.verification import damaged_files, remove_damaged, sampled
from data.errors import ArtifactMissing, InvalidConfig, PipelineError
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
from flows.rebuilding import rebuilt_differences
from flows.results import flat_results, reports_of
from tasks.execution.plan import Planner

app = typer.Typer()

_KEY = re.compile(r"([a-z-]+/)?[0-9a-f]+")
_LONG = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{24,}\b")
"""A key or a digest, of which people read the beginning."""

_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_VERDICTS = {"hit": "a run takes it from the store", "remote": "a run takes it from the remote"}
_LINES_SHOWN = 20
"""Of each topic of a difference."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def ls(
    *,
    as_json: JsonOption = False,
    sort: Annotated[Literal["age", "size", "kind"], typer.Option(help="What comes first.")] = "age",
    unused: Annotated[bool, typer.Option("--unused", help="What no run's record names.")] = False,
    runs: Annotated[bool, typer.Option("--runs", help="Runs instead of artifacts.")] = False,
    remote: Annotated[
        bool, typer.Option("--remote", help="Runs that are on the remote instead.")
    ] = False,
) -> None:
    """List the artifacts of the store, the newest first: state, size, age, and the runs that use them."""
    if remote:
        _list_remote_runs(required_remote(), as_json=as_json)
        return
    store = _store()
    if runs:
        records = list(read_records(store.root))
        _list_runs(records, set(artifacts(store.root)), pinned(store.root), as_json=as_json)
        return
    order = {
        "age": lambda item: -item.changed,
        "size": lambda item: -item.bytes,
        "kind": lambda item: item.reference,
    }
    found = sorted(listed(store, read_records(store.root)), key=order[sort])
    found = [item for item in found if not (unused and item.runs)]
    short = short_keys(_references(store))
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
            _size(item.bytes),
            _age(item.changed),
            item.step,
            ", ".join(users + ["pin"] * item.pinned),
        )
    print_table(table)


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


def _list_remote_runs(remote: Remote, *, as_json: bool) -> None:
    records = [remote.record(run) for run in remote.record_ids()]
    there = remote.has({step.reference for record in records for step in record.steps})
    _list_runs(records, there, set(), as_json=as_json)


def _list_runs(
    records: Sequence[Record], there: Collection[str], pins: Collection[str], *, as_json: bool
) -> None:
    table, documents = Table("run", "of", "stage", "started", "steps there", "missing", "kept"), []
    for record in records:
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
            "pin" if is_pinned else "",
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
) -> None:
    """Say why a run would make a step or not; or, of a key, why its artifact is kept."""
    if _KEY.fullmatch(what):
        _show_keepers(_store(), what)
        return
    store = ArtifactStore(default_root())
    with DigestMemory(store.root, show_digests) as digests:
        graph = requested(preset, assignments, config_file, study_source).graph(digests)
    step = graph.find(what)
    found = Planner(store, graph, read_records(store.root), default_remote()).look_up(step)
    verdict = _VERDICTS.get(found.state, "a run would make it")
    typer.echo(f"{what}  {_short(step.identity.reference)}  {found.state}: {verdict}")
    if found.nearest is None:
        typer.echo(f"  {found.why or 'it is there and intact'}")
        return
    nearest = found.nearest
    typer.echo(f"  nearest: {_short(nearest.reference)}, made on {nearest.created_at[:10]}")
    for (_, new), changes in found.causes.items():
        prefix = "" if new == step.identity.reference else f"{graph.steps[new].name}: "
        for change in changes:
            typer.echo(f"  {prefix}{change}")


def _show_keepers(store: ArtifactStore, text: str) -> None:
    reference = find(text, _references(store))
    kept = Roots(store, Keep()).kept(datetime.now(UTC))
    reason = kept.get(reference, "nothing, `detdiffusion gc` would remove it")
    typer.echo(f"{reference}\n  kept by gc: {reason}")
    for record in read_records(store.root):
        for step in record.steps:
            if step.reference == reference:
                typer.echo(f"  run {record.id} of {record.name}: {step.names[0]}")
    if reference in pinned(store.root):
        typer.echo("  pinned")
    for other in artifacts(store.root):
        manifest = store.read(*other.split("/"))
        names = (
            [name for name, of in manifest.inputs.items() if of == reference] if manifest else []
        )
        if names:
            typer.echo(f"  input of {_short(other)}: {', '.join(names)}")


@app.command()
def diff(
    first: Annotated[
        str, typer.Argument(metavar="A", help="A key, or a run as `ls --runs` has it.")
    ],
    second: Annotated[str, typer.Argument(metavar="B", help="Another of the same sort.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Say in what two artifacts or two runs differ, and what came first; status 1 if they do."""
    store = _store()
    manifests: dict[str, Manifest | None] = {}

    def read(reference: str) -> Manifest | None:
        if reference not in manifests:
            manifests[reference] = store.read(*reference.split("/"))
        return manifests[reference]

    def known(reference: str) -> Any:
        manifest = read(reference)
        return manifest.identity if manifest else None

    records = {record.id: record for record in read_records(store.root)}
    names = [find(text, artifacts(store.root), records) for text in (first, second)]
    runs = [records[name] for name in names if name in records]
    lineage = Lineage(known)
    if len(runs) == 1:
        raise InvalidConfig(
            f"{first!r} and {second!r} are a run and an artifact: give two of a sort"
        )
    if runs:
        found = run_differences(read, lineage, *runs)
        if numbers := differences(_numbers(store, runs[0]), _numbers(store, runs[1])):
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


def _numbers(store: ArtifactStore, record: Record) -> Mapping[str, float]:
    """The numbers of a run's report; none where it has none."""
    reports = reports_of(store, record)
    return flat_results(store, record, reports) if reports else {}


def _show_differences(found: Mapping[str, Differences]) -> None:
    for topic, changes in found.items():
        typer.echo(topic)
        for name, (before, after) in list(changes.items())[:_LINES_SHOWN]:
            typer.echo(_LONG.sub(r"\1", f"  {name}: {before!r} → {after!r}"))
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
) -> None:
    """Read every file of the artifacts and compare its digest; status 1 where one is damaged.

    With --rebuild also where one is made anew with other bytes, or cannot be.
    """
    store = _store()
    there = artifacts(store.root)
    chosen = [find(text, there) for text in keys] if keys else there
    if sample is not None:
        chosen = sampled(chosen, *_part(sample))
    damaged = []
    for reference in tracked(chosen, "verify"):
        files = damaged_files(store, reference, fast=fast)
        for name in files:
            typer.echo(f"damaged: {store.root / reference / name}")
        damaged += [reference] * bool(files)
    typer.echo(f"{len(chosen)} artifacts looked at, {len(damaged)} damaged")
    if repair and damaged:
        moved = remove_damaged(store, damaged)
        typer.echo(f"{len(moved)} moved to {store.root / TRASH_FOLDER}: a run makes them again")
    intact = [reference for reference in chosen if reference not in damaged]
    same = [_rebuilds_the_same(store, reference) for reference in intact if rebuild]
    raise typer.Exit(0 if not damaged and all(same) else 1)


def _rebuilds_the_same(store: ArtifactStore, reference: str) -> bool:
    """Make an intact artifact anew, and say in what the new one differs."""
    manifest = _readable(store.read(*reference.split("/")), reference)
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


@app.command()
def gc(
    *,
    keep: Annotated[
        int, typer.Option(min=0, help="Newest runs of each preset and study that are kept.")
    ] = Keep().runs,
    grace: Annotated[
        str, typer.Option(help="What is younger is kept, e.g. 30min, 24h, 7d.")
    ] = "24h",
    free: Annotated[
        str | None, typer.Option(help="Enough is freed then, the oldest first, e.g. 50G.")
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Do it, do not only say it.")] = False,
) -> None:
    """Remove what no kept run, no pin and no work in progress needs; without --apply say what it is.

    It is moved to the folder .trash, which the next `gc --apply` empties.
    """
    store = _store()
    kept = replace(Keep(), runs=keep, grace=_duration(grace))
    found = garbage(store, kept, None if free is None else _bytes(free))
    oldest_first = reversed(list(read_records(store.root)))
    steps = {step.reference: step.names[0] for record in oldest_first for step in record.steps}
    short = short_keys(_references(store))
    trash = store.root / TRASH_FOLDER
    earlier = sum(tree(trash / name)[0] for name in folders(trash))
    done = {item.path for item in collect(store, kept, found)} if apply else set()
    table = Table("step", "artifact", "size", "age", *(["moved"] if apply else []))
    for item in found:
        moved = ["yes" if item.path in done else "no, in use"] if apply else []
        name = item.path.replace(item.reference, _short(item.reference, short[item.reference]))
        table.add_row(
            steps.get(item.reference, ""), name, _size(item.bytes), _age(item.changed), *moved
        )
    if found:
        print_table(table)
    total = _size(sum(item.bytes for item in found if not apply or item.path in done))
    if apply:
        typer.echo(f"moved to .trash: {total}, which the next `gc --apply` deletes")
        typer.echo(f"deleted from .trash: {_size(earlier)}")
    else:
        typer.echo(f"to be moved to .trash: {total}; to be deleted from it: {_size(earlier)}")
        typer.echo("nothing was done: that takes --apply")


@app.command("pin")
def add_pin(what: Annotated[str, typer.Argument(metavar="KEY|RUN")]) -> None:
    """Keep an artifact or a run, and all that it is made from, until it is unpinned."""
    store = _store()
    ids = [record.id for record in read_records(store.root)]
    reference = _pin_name(find(what, artifacts(store.root), ids))
    pin(store.root, reference)
    typer.echo(f"pinned: {reference}")


@app.command("unpin")
def remove_pin(what: Annotated[str, typer.Argument(metavar="KEY|RUN")]) -> None:
    """Take a pin away."""
    store = _store()
    pins = pinned(store.root)
    ids = {name.partition("/")[2] for name in pins if name.startswith(f"{RECORDS_FOLDER}/")}
    keys = {name for name in pins if not name.startswith(f"{RECORDS_FOLDER}/")}
    reference = _pin_name(find(what, keys, ids))
    unpin(store.root, reference)
    typer.echo(f"no longer pinned: {reference}")


def _pin_name(found: str) -> str:
    return found if "/" in found else f"{RECORDS_FOLDER}/{found}"


def _store() -> ArtifactStore:
    store = ArtifactStore(default_root())
    require_store(store.root)
    return store


def _references(store: ArtifactStore) -> set[str]:
    return {*artifacts(store.root), *unfinished(store.root)}


def _short(reference: str, short: str = "") -> str:
    kind, _, key = reference.partition("/")
    return f"{kind}/{short or key[:8]}"


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    part, parts = map(int, match.groups()) if match else (0, 0)
    if not 1 <= part <= parts:
        raise InvalidConfig(f"--sample {text!r}: write N/T with N from 1 to T, e.g. 1/10")
    return part, parts


def _duration(text: str) -> timedelta:
    """A length of time.

    >>> _duration("36h"), _duration("30min")
    (datetime.timedelta(days=1, seconds=43200), datetime.timedelta(seconds=1800))
    """
    match = re.fullmatch(r"(\d+)(s|min|h|d|w)", text)
    if match is None:
        raise InvalidConfig(f"--grace {text!r}: write a number with s, min, h, d or w, e.g. 24h")
    return timedelta(seconds=int(match[1]) * _SECONDS[match[2]])


def _bytes(text: str) -> int:
    try:
        return TypeAdapter(ByteSize).validate_python(text)
    except ValidationError as error:
        raise InvalidConfig(f"--free {text!r}: write a size, e.g. 50G or 500M") from error


def _size(count: int) -> str:
    return ByteSize(count).human_readable(decimal=True)


def _age(changed: float) -> str:
    """How long ago that was, in the largest unit of which there is one."""
    age = max(time.time() - changed, 0)
    unit = next((name for name in ("d", "h", "min") if age >= _SECONDS[name]), "s")
    return f"{age / _SECONDS[unit]:.0f} {unit}"
