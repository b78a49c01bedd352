"""The commands that say what of the artifact store, or of its mirror, may go and what stays."""

import re
from collections.abc import Collection, Sequence
from datetime import timedelta
from functools import partial
from typing import Annotated

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.table import Table

from data.artifacts.garbage import Garbage, cached, first
from data.artifacts.identity import short_name
from data.artifacts.inventory import find, short_keys, tree
from data.artifacts.records import RECORDS_FOLDER, Record
from data.artifacts.remote import default_remote
from data.artifacts.remote_contents import RemoteContents
from data.artifacts.roots import Keep
from data.artifacts.store import ArtifactStore, default_root
from data.artifacts.store_contents import StoreContents
from data.errors import ArtifactMissing, InvalidConfig
from data.progress import Progress
from flows.command_options import print_table, shown_progress
from flows.opened_contents import RemoteOption, opened
from flows.readable import SECONDS, age, size

app = typer.Typer()

_LONGEST = 100 * 365 * SECONDS["d"]


@app.command()
def gc(
    *,
    keep: Annotated[
        int,
        typer.Option(
            min=0,
            help="Newest finished runs of each preset and study that are kept, and as many newer ones that "
            "are not finished.",
        ),
    ] = Keep().runs,
    grace: Annotated[
        str, typer.Option(help="What is younger is kept, e.g. 30min, 24h, 7d.")
    ] = "24h",
    free: Annotated[
        str | None, typer.Option(help="Enough is freed then, the oldest first, e.g. 50G.")
    ] = None,
    limit: Annotated[
        str | None,
        typer.Option(
            help="The store shall be no larger, its .trash left out, e.g. 500G: the oldest goes first, and "
            "if need be what the remote has too, the longest unused first, which a run pulls again."
        ),
    ] = None,
    remote: RemoteOption = False,
    apply: Annotated[bool, typer.Option("--apply", help="Do it, do not only say it.")] = False,
) -> None:
    """Free space of what no run, pin or work in progress needs.

    Without --apply it says what that is.

    It is moved to the folder .trash, which the next `gc --apply` empties; on the remote it deletes only what
    has lain there longer than --grace. What --limit takes because the remote has it is deleted at once.
    """
    if limit is not None and (remote or free is not None):
        raise InvalidConfig("--limit goes neither with --remote nor with --free")
    contents, kept = opened(remote=remote), Keep(keep, _duration(grace))
    found = contents.garbage(kept, None if free is None else _bytes("--free", free))
    earlier = sum(item.bytes for item in contents.earlier(kept))
    cached: list[Garbage] = []
    if limit is not None:
        found, cached = _down_to(_bytes("--limit", limit), kept, found, earlier, read=apply)
    done: set[str] = set()
    if apply and isinstance(contents, StoreContents):
        done = {item.path for item in contents.collect(kept, found, cached)}
    elif apply:
        done = {item.path for item in contents.collect(kept, found)}
    _show(contents.records(), found + cached, done if apply else None)
    trash = f".trash of {contents.place}"
    moved, freed = (
        size(sum(item.bytes for item in items if not apply or item.path in done))
        for items in (found, cached)
    )
    what = ("moved", "deleted") if apply else ("to be moved", "to be deleted")
    typer.echo(f"{what[0]} to {trash}: {moved}")
    if limit is not None:
        typer.echo(f"{what[1]}, for the remote has it: {freed}")
    typer.echo(f"{what[1]} from {trash}: {size(earlier)}")
    if not apply:
        typer.echo("nothing was done: that takes --apply")


def _down_to(
    limit: int, keep: Keep, found: Sequence[Garbage], earlier: int, *, read: bool
) -> tuple[list[Garbage], list[Garbage]]:
    """What brings the store to a size: of the garbage, and if need be of what the remote has too.

    Args:
        read: take what the remote has only where all of its bytes there are right.
    """
    store = ArtifactStore(default_root())
    over = tree(store.root)[0] - earlier - limit
    chosen = first(found, over)
    over -= sum(item.bytes for item in chosen)
    remote = default_remote() if over > 0 else None
    if remote:
        mirror = RemoteContents(remote)
        mirrored = mirror.backs_up(store, keep) - {item.path for item in chosen}
        with shown_progress("gc") as progress:
            is_whole = partial(_is_whole, mirror, progress) if read else None
            more = cached(store, keep, mirrored, over, is_whole)
    else:
        more = []
    if (left := over - sum(item.bytes for item in more)) > 0:
        typer.echo(f"{size(left)} over the limit stay: young, pinned, in use or not on a remote")
    return chosen, more


def _is_whole(mirror: RemoteContents, progress: Progress, reference: str) -> bool:
    """Whether an artifact's bytes on a mirror are right; says which file's are not."""
    progress(0, 1, f"reads {short_name(reference)} on the remote")
    damaged = mirror.damage(reference)
    for name in damaged:
        typer.echo(f"kept, for on the remote it is damaged: {mirror.where(reference, name)}")
    return not damaged


def _show(
    records: Sequence[Record], found: Sequence[Garbage], done: Collection[str] | None
) -> None:
    """Print what may go, or what of it has gone, by what the newest run calls it."""
    if not found:
        return
    steps = {step.reference: step.names[0] for record in reversed(records) for step in record.steps}
    short = short_keys({item.reference for item in found})
    table = Table("step", "artifact", "size", "age", *(["moved"] if done is not None else []))
    for item in found:
        name = item.path.replace(item.reference, short_name(item.reference, short[item.reference]))
        moved = [] if done is None else ["yes" if item.path in done else "no, in use"]
        table.add_row(
            steps.get(item.reference, ""), name, size(item.bytes), age(item.changed), *moved
        )
    print_table(table)


@app.command("pin")
def add_pin(
    what: Annotated[str, typer.Argument(metavar="KEY|RUN")], *, remote: RemoteOption = False
) -> None:
    """Keep an artifact or a run, and all that it is made from.

    Until it is unpinned.
    """
    contents = opened(remote=remote)
    ids = [record.id for record in contents.records()]
    name = _pin_name(find(what, contents.artifacts, ids))
    contents.pin(name)
    typer.echo(f"pinned: {name}")


@app.command("unpin")
def remove_pin(
    what: Annotated[str, typer.Argument(metavar="KEY|RUN")], *, remote: RemoteOption = False
) -> None:
    """Take a pin away."""
    contents = opened(remote=remote)
    pins = contents.pins()
    ids = {name.partition("/")[2] for name in pins if name.startswith(f"{RECORDS_FOLDER}/")}
    keys = {name for name in pins if not name.startswith(f"{RECORDS_FOLDER}/")}
    if not pins:
        raise ArtifactMissing("nothing is pinned")
    name = _pin_name(find(what, keys, ids))
    contents.unpin(name)
    typer.echo(f"no longer pinned: {name}")


def _pin_name(found: str) -> str:
    return found if "/" in found else f"{RECORDS_FOLDER}/{found}"


def _duration(text: str) -> timedelta:
    """A length of time.

    >>> _duration("36h"), _duration("30min")
    (datetime.timedelta(days=1, seconds=43200), datetime.timedelta(seconds=1800))
    """
    match = re.fullmatch(r"(\d+)(s|min|h|d|w)", text)
    if match is None:
        raise InvalidConfig(f"--grace {text!r}: write a number with s, min, h, d or w, e.g. 24h")
    seconds = int(match[1]) * SECONDS[match[2]]
    if seconds > _LONGEST:
        raise InvalidConfig(f"--grace {text!r} is more than a hundred years")
    return timedelta(seconds=seconds)


def _bytes(option: str, text: str) -> int:
    try:
        return TypeAdapter(ByteSize).validate_python(text)
    except ValidationError as error:
        raise InvalidConfig(f"{option} {text!r}: write a size, e.g. 50G or 500M") from error
