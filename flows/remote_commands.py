"""The commands of the store's mirror: fill it, fill the store from it; and whether both can be used."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Annotated

import typer

from data.artifacts.bucket import CONTENDERS
from data.artifacts.fitness import CHECKS, require_fit
from data.artifacts.inventory import artifacts, find, require_store
from data.artifacts.records import Record, add_record, read_records
from data.artifacts.remote import Remote, default_remote, required_remote
from data.artifacts.store import ArtifactStore, default_root
from data.errors import ArtifactMissing, PipelineError, RemoteConflict, RemoteDamaged
from flows.command_options import tracked

app = typer.Typer()

NamesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[STEP|KEY|RUN]…",
        help="A step as the newest run calls it, a key, or a run. Default: the newest run.",
    ),
]


@app.command()
def push(names: NamesArgument = None) -> None:
    """Put artifacts, and records of runs, on the remote.

    Status 1 where one is refused.

    With an artifact goes the record of the newest run that has it. What is there stays, and an interrupted
    push goes on with what it had not sent.
    """
    remote, store = required_remote(), ArtifactStore(default_root())
    require_store(store.root)
    records = {record.id: record for record in read_records(store.root)}
    runs, chosen = _chosen(names, artifacts(store.root), list(records), records.__getitem__)
    there = {step.reference for run in runs for step in records[run].steps}
    others = _records_with(set(chosen) - there, records.values())
    for run in [*runs, *(record.id for record in others)]:
        remote.push_record(store.root, run)

    def send(reference: str) -> str:
        manifest = store.manifest(reference)
        if manifest is None:
            return "not made"
        return "pushed" if remote.push(store, manifest) else "there already"

    _carry_out("push", send, chosen)


@app.command()
def pull(names: NamesArgument = None) -> None:
    """Get artifacts, and records of runs, from the remote.

    Status 1 where one is damaged.

    With an artifact comes the record of the newest run that has it.
    """
    remote, store = required_remote(), ArtifactStore(default_root())
    ids = remote.record_ids()
    runs, chosen = _chosen(names, remote.references(), ids, remote.record)
    require_fit(store.root)
    records = [remote.pull_record(store.root, run) for run in runs]
    there = {step.reference for record in records for step in record.steps}
    for record in _records_with(set(chosen) - there, map(remote.record, ids)):
        add_record(store.root, record)

    def fetch(reference: str) -> str:
        kind, key = reference.split("/")
        with store.lock_if_free(kind, key) as is_free:
            if not is_free:
                return "being made here"
            if store.lookup(kind, key):
                return "there already"
            return "pulled" if remote.pull(store, kind, key) else "not on the remote"

    _carry_out("pull", fetch, chosen)


def _records_with(references: AbstractSet[str], records: Iterable[Record]) -> Iterator[Record]:
    """Those of the newest runs that between them have these artifacts, as far as any has.

    Args:
        records: the newest first; no more are read than it takes.
    """
    left, unread = references, iter(records)
    while left and (record := next(unread, None)):
        steps = {step.reference for step in record.steps}
        if left & steps:
            left = left - steps
            yield record


def _chosen(
    names: Sequence[str] | None,
    references: Collection[str],
    ids: Sequence[str],
    read: Callable[[str], Record],
) -> tuple[list[str], list[str]]:
    """Runs and artifacts that are meant by names, or the newest run; those of the runs are among them.

    Args:
        references: `kind/key` of all artifacts that can be meant.
        ids: of all runs that can be meant, the newest first.
        read: a record by its id.

    Raises:
        ArtifactMissing: a name means nothing, or more than one thing; or there is no run.
    """
    if not names and not ids:
        raise ArtifactMissing("no run is on the remote: `detdiffusion push` puts one there")
    runs: list[str] = []
    chosen: list[str] = []
    for name in names or ids[:1]:
        step = read(ids[0]).step(name) if ids else None
        found = step.reference if step else find(name, references, ids)
        if found in ids:
            runs.append(found)
            chosen += [item.reference for item in read(found).steps]
        else:
            chosen.append(found)
    return runs, list(dict.fromkeys(chosen))


def _carry_out(what: str, do: Callable[[str], str], references: Iterable[str]) -> None:
    """Do something with each artifact and count what becomes of them."""
    counts: Counter[str] = Counter()
    for reference in tracked(list(references), what):
        try:
            counts[do(reference)] += 1
        except (ArtifactMissing, RemoteConflict, RemoteDamaged) as error:
            typer.echo(f"refused: {error}", err=True)
            counts["refused"] += 1
    typer.echo(", ".join(f"{count} {word}" for word, count in counts.items()))
    raise typer.Exit(1 if counts["refused"] else 0)


@app.command()
def doctor(
    *,
    remote: Annotated[
        bool,
        typer.Option(
            "--remote", help="Also let many threads create one object on the remote at once."
        ),
    ] = False,
) -> None:
    """Look whether the store and its remote can be used.

    One line each; status 1 at a fault.
    """
    root, faults = default_root(), 0
    checks = {name: partial(check, root) for name, check in CHECKS.items()}
    for name, look in {**checks, "remote": partial(_remote_state, contest=remote)}.items():
        try:
            state, text = "ok", look()
        except (PipelineError, OSError) as error:
            state, text, faults = "fault", str(error), faults + 1
        typer.echo(f"{state:>5}  {name:<11}  {text}")
    raise typer.Exit(1 if faults else 0)


def _remote_state(*, contest: bool) -> str:
    """What is found of the mirror.

    Raises:
        PipelineError: it cannot be used.
    """
    mirror: Remote | None = required_remote() if contest else default_remote()
    if mirror is None:
        return "none, DETDIFFUSION_REMOTE is not set"
    mirror.check()
    if not contest:
        return f"{mirror.url} answers and honours conditions"
    mirror.bucket.contest()
    return f"{mirror.url} answers, and of {CONTENDERS} that created one object at once one did"
