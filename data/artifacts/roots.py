"""What keeps artifacts: runs, pins, their age, work on them; and all that those are made from."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from data.artifacts.files import names_in, storage_errors
from data.artifacts.inventory import artifacts, linked, made_at
from data.artifacts.manifest import MANIFEST_NAME
from data.artifacts.records import RECORDS_FOLDER, Record, read_record, record_files
from data.artifacts.store import ArtifactStore
from data.errors import InvalidManifest, InvalidRecord

PINS_FOLDER = "pins"


@dataclass(frozen=True, slots=True)
class Keep:
    """What is kept beside pins and what is being made.

    Attributes:
        runs: the newest of each preset, stage alone and study that have all their artifacts, and as many
            newer ones that lack some; those with the same artifacts are one.
        grace: what is younger.
    """

    runs: int = 3
    grace: timedelta = timedelta(hours=24)


def pin(root: Path, reference: str) -> None:
    """Keep an artifact (`kind/key`) or a run (`runs/id`), and all that it is made from.

    Raises:
        StorageError: the store cannot be written to.
    """
    path = root / PINS_FOLDER / reference
    with storage_errors(root):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def unpin(root: Path, reference: str) -> None:
    """Take a pin away, if there is one.

    Raises:
        StorageError: the store cannot be written to.
    """
    with storage_errors(root):
        (root / PINS_FOLDER / reference).unlink(missing_ok=True)


def pinned(root: Path) -> set[str]:
    """What is pinned, as `pin` was given it.

    Raises:
        StorageError: that cannot be read.
    """
    folder = root / PINS_FOLDER
    with storage_errors(root):
        return {
            f"{first}/{last}" for first in names_in(folder) for last in names_in(folder / first)
        }


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a store, or its mirror, has, as far as it decides what is kept.

    Attributes:
        changed: seconds since the epoch at which each artifact, `kind/key`, was put there.
        inputs: `kind/key` of what each was made from.
        records: the newest first.
        pins: as `pin` was given them.
        locked: `kind/key` of what somebody works on.
    """

    changed: Mapping[str, float]
    inputs: Mapping[str, Sequence[str]]
    records: Sequence[Record]
    pins: AbstractSet[str]
    locked: AbstractSet[str] = frozenset()


def kept(there: Holdings, keep: Keep, now: datetime) -> dict[str, str]:
    """What must stay, `kind/key`, and one reason for each.

    Args:
        now: with time zone.

    Raises:
        InvalidRecord: what any one run needs is not known.
    """
    found = dict.fromkeys(there.locked, "somebody works on it")
    found |= dict.fromkeys(there.pins & there.changed.keys(), "pinned")
    for record, reason in _kept_records(there, keep, now):
        for step in record.steps:
            found.setdefault(step.reference, reason)
    since = (now - keep.grace).timestamp()
    for reference, changed in there.changed.items():
        if changed > since:
            found.setdefault(reference, "younger than the grace")
    waiting = list(found)
    for reference in waiting:  # which grows meanwhile
        for source in there.inputs.get(reference, ()):
            if source not in found:
                found[source] = f"{reference} is made from it"
                waiting.append(source)
    return found


def _kept_records(there: Holdings, keep: Keep, now: datetime) -> Iterator[tuple[Record, str]]:
    known = {f"{RECORDS_FOLDER}/{record.id}" for record in there.records}
    for name in there.pins - known:
        if name.startswith(f"{RECORDS_FOLDER}/"):
            raise InvalidRecord(f"{name} is pinned and there is no such record: unpin it")
    finished: dict[tuple[Any, ...], set[frozenset[str]]] = defaultdict(set)
    unfinished: dict[tuple[Any, ...], set[frozenset[str]]] = defaultdict(set)
    for record in there.records:
        steps = frozenset(step.reference for step in record.steps)
        same = record.what, record.name, record.stage
        # Runs that died must not use up the number: the last one that has a report would go.
        counted = finished if there.changed.keys() >= record.wanted else unfinished
        if len(finished[same]) < keep.runs and len(counted[same]) < keep.runs:
            counted[same].add(steps)
            yield record, f"one of the newest runs of {record.name}, {record.id}"
        elif f"{RECORDS_FOLDER}/{record.id}" in there.pins:
            yield record, f"the run {record.id} is pinned"
        elif datetime.fromisoformat(record.created_at) > now - keep.grace:
            yield record, f"the run {record.id} is younger than the grace"
        elif steps & there.locked:
            yield record, f"somebody works on the run {record.id}"


class Roots:
    """What keeps the artifacts of a store; may be asked again while others go on with their work."""

    def __init__(self, store: ArtifactStore, keep: Keep):
        self._store = store
        self._keep = keep
        self._record = cache(read_record)  # never changed
        self._inputs = cache(self._read_inputs)

    def kept(self, now: datetime, holding: str = "") -> dict[str, str]:
        """What must stay, `kind/key`, and one reason for each.

        Args:
            now: with time zone.
            holding: an artifact whose lock is the caller's own.

        Raises:
            InvalidManifest: what any one artifact needs is not known.
            InvalidRecord: what any one run needs is not known.
            StorageError: a file that tells of it cannot be read.
        """
        root = self._store.root
        with storage_errors(root):
            there = [*artifacts(root), *linked(root)]
            changed = {reference: made_at(root, reference) for reference in there}
        holdings = Holdings(
            changed=changed,
            inputs={item: self._inputs(item, when) for item, when in changed.items()},
            records=[self._record(path) for path in record_files(root)],
            pins=pinned(root),
            locked=self._store.locked() - {holding},
        )
        return kept(holdings, self._keep, now)

    def _read_inputs(self, reference: str, changed: float) -> list[str]:
        """`kind/key` of an artifact's inputs; of another at another time of change."""
        manifest = self._store.manifest(reference)
        if manifest is not None:
            return list(manifest.inputs.values())
        if not (self._store.root / reference).exists():
            return []
        raise InvalidManifest(
            f"{self._store.root / reference / MANIFEST_NAME} is missing or cannot be read, so nobody knows "
            "what it needs: `detdiffusion verify --repair` moves it away; a link is yours to take away"
        )
