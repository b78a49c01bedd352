"""Garbage collection: what nothing keeps goes to the trash, and is deleted by the next one."""

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from data.artifacts.files import storage_errors
from data.artifacts.inventory import artifacts, made_at, require_store, tree, unfinished
from data.artifacts.records import read_records
from data.artifacts.roots import Keep, Roots
from data.artifacts.store import WORK_FOLDER, ArtifactStore
from data.artifacts.trash import Removal, Trash, opened


@dataclass(frozen=True, slots=True)
class Garbage:
    """An artifact, or a work folder, that nothing keeps.

    Attributes:
        reference: `kind/key`.
        path: relative to the root.
        changed: seconds since the epoch.
    """

    reference: str
    path: str
    bytes: int
    changed: float


def garbage(store: ArtifactStore, keep: Keep, free: int | None = None) -> list[Garbage]:
    """Find what nothing keeps, the oldest first.

    Args:
        free: bytes that suffice; None for all that there are.

    Raises:
        PipelineError: this is no store, or what a run or an artifact needs is not known.
    """
    require_store(store.root)
    now = datetime.now(UTC)
    kept = Roots(store, keep).kept(now)
    with storage_errors(store.root):
        found = [
            Garbage(item, item, tree(store.root / item)[0], made_at(store.root, item))
            for item in artifacts(store.root)
            if item not in kept
        ]
        since = (now - keep.grace).timestamp()
        for item in unfinished(store.root):
            size, changed = tree(store.root / WORK_FOLDER / item)
            if changed <= since and (store.has(*item.split("/")) or item not in kept):
                found.append(Garbage(item, f"{WORK_FOLDER}/{item}", size, changed))
    found.sort(key=lambda item: item.changed)
    return first(found, free)


def cached(
    store: ArtifactStore,
    keep: Keep,
    mirrored: AbstractSet[str],
    free: int,
    is_whole: Callable[[str], bool] | None = None,
) -> list[Garbage]:
    """Find what the mirror has too and runs alone need, the longest unused first.

    Args:
        mirrored: `kind/key` of what may be had from there again.
        free: bytes that suffice.
        is_whole: asked of one after the other, until so much is found; where it says no another one is taken.
            None: all are.

    Raises:
        PipelineError: what a run or an artifact needs is not known.
    """
    kept = Roots(store, replace(keep, runs=0)).kept(datetime.now(UTC))
    used: dict[str, float] = {}
    for record in read_records(store.root):
        for step in record.steps:
            used.setdefault(step.reference, datetime.fromisoformat(record.created_at).timestamp())
    found = []
    with storage_errors(store.root):
        for item in artifacts(store.root):
            if item in mirrored and item not in kept:
                changed = max(made_at(store.root, item), used.get(item, 0.0))
                found.append(Garbage(item, item, tree(store.root / item)[0], changed))
    oldest = sorted(found, key=lambda item: item.changed)
    return first((item for item in oldest if not is_whole or is_whole(item.reference)), free)


def collect(
    store: ArtifactStore, keep: Keep, found: Sequence[Garbage], cached: Sequence[Garbage] = ()
) -> list[Garbage]:
    """Delete what an earlier collection found, and move to the trash what this one did.

    Each is looked at again, under its lock: what somebody works on or has come to need stays.

    Args:
        found: by `garbage`.
        cached: by the function of this name; that runs need them does not keep them.

    Returns:
        What was moved.

    Raises:
        PipelineError: what a run or an artifact needs is not known, or the trash cannot be used.
    """
    roots = Roots(store, keep)
    without_runs = Roots(store, replace(keep, runs=0))
    with opened(store) as trash:
        roots.kept(datetime.now(UTC))  # before anything is deleted
        trash.empty()
        moved = [item for item in found if _moved(store, roots, trash, item)]
        for item in cached:
            if _moved(store, without_runs, trash, item):
                trash.delete(item.path)  # the mirror has it
                moved.append(item)
    return moved


def _moved(store: ArtifactStore, roots: Roots, trash: Trash, item: Garbage) -> bool:
    """Move something to the trash, if nothing keeps it."""
    with store.lock_if_free(*item.reference.split("/")) as is_free:
        now = datetime.now(UTC)
        is_there = (store.root / item.path).is_dir()
        if not (is_free and is_there) or _is_needed(store, roots, item, now):
            return False
        trash.move(item.path, Removal(item.reference, now.isoformat(), "collected by gc"))
        return True


def _is_needed(store: ArtifactStore, roots: Roots, item: Garbage, now: datetime) -> bool:
    """Whether something keeps it; a work folder goes where its artifact is made."""
    is_left = item.path != item.reference and store.has(*item.reference.split("/"))
    return not is_left and item.reference in roots.kept(now, item.reference)


def first(found: Iterable[Garbage], free: int | None) -> list[Garbage]:
    """As many as free so many bytes; all where that is None."""
    chosen, freed, left = [], 0, iter(found)
    while (free is None or freed < free) and (item := next(left, None)):
        chosen.append(item)
        freed += item.bytes
    return chosen
