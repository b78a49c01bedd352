"""What keeps artifacts: runs, pins, their age, work on them; and all that those are made from."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path

from data.artifacts.inventory import artifacts, made_at
from data.artifacts.manifest import MANIFEST_NAME
from data.artifacts.records import RECORDS_FOLDER, Record, read_record, record_files
from data.artifacts.store import ArtifactStore, storage_errors
from data.errors import InvalidManifest, InvalidRecord

_PINS = "pins"


@dataclass(frozen=True, slots=True)
class Keep:
    """What is kept beside pins and what is being made.

    Attributes:
        runs: the newest of each preset and each study; those with the same artifacts are one.
        grace: what is younger.
    """

    runs: int = 3
    grace: timedelta = timedelta(hours=24)


def pin(root: Path, reference: str) -> None:
    """Keep an artifact (`kind/key`) or a run (`runs/id`), and all that it is made from.

    Raises:
        StorageError: the store cannot be written to.
    """
    path = root / _PINS / reference
    with storage_errors(root):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def unpin(root: Path, reference: str) -> None:
    """Take a pin away, if there is one.

    Raises:
        StorageError: the store cannot be written to.
    """
    with storage_errors(root):
        (root / _PINS / reference).unlink(missing_ok=True)


def pinned(root: Path) -> set[str]:
    """What is pinned, as `pin` was given it."""
    folder = root / _PINS
    return {str(path.relative_to(folder)) for path in folder.glob("*/*")}


class Roots:
    """What keeps artifacts; may be asked again while others go on with their work."""

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
        """
        there = artifacts(self._store.root)
        changed = {reference: made_at(self._store.root, reference) for reference in there}
        inputs = {reference: self._inputs(reference, changed[reference]) for reference in there}
        pins, locked = pinned(self._store.root), self._store.locked() - {holding}
        kept = dict.fromkeys(locked, "somebody works on it")
        kept |= dict.fromkeys(pins.intersection(there), "pinned")
        for record, reason in self._kept_records(now, pins, locked):
            for step in record.steps:
                kept.setdefault(step.reference, reason)
        since = (now - self._keep.grace).timestamp()
        for reference in there:
            if changed[reference] > since:
                kept.setdefault(reference, "younger than the grace")
        waiting = list(kept)
        for reference in waiting:  # which grows meanwhile
            for source in inputs.get(reference, ()):
                if source not in kept:
                    kept[source] = f"{reference} is made from it"
                    waiting.append(source)
        return kept

    def _kept_records(
        self, now: datetime, pins: set[str], locked: set[str]
    ) -> Iterator[tuple[Record, str]]:
        records = [self._record(path) for path in record_files(self._store.root)]
        known = {f"{RECORDS_FOLDER}/{record.id}" for record in records}
        for name in pins - known:
            if name.startswith(f"{RECORDS_FOLDER}/"):
                raise InvalidRecord(f"{name} is pinned and there is no such record: unpin it")
        newest: dict[tuple[str, str, str | None], set[frozenset[str]]] = {}
        for record in records:
            steps = frozenset(step.reference for step in record.steps)
            different = newest.setdefault((record.what, record.name, record.stage), set())
            if len(different) < self._keep.runs:
                different.add(steps)
                yield record, f"one of the newest runs of {record.name}, {record.id}"
            elif f"{RECORDS_FOLDER}/{record.id}" in pins:
                yield record, f"the run {record.id} is pinned"
            elif datetime.fromisoformat(record.created_at) > now - self._keep.grace:
                yield record, f"the run {record.id} is younger than the grace"
            elif steps & locked:
                yield record, f"somebody works on the run {record.id}"

    def _read_inputs(self, reference: str, changed: float) -> list[str]:
        """`kind/key` of an artifact's inputs; of another at another time of change."""
        manifest = self._store.read(*reference.split("/"))
        if manifest is not None:
            return list(manifest.inputs.values())
        if not (self._store.root / reference).exists():
            return []
        raise InvalidManifest(
            f"{self._store.root / reference / MANIFEST_NAME} is missing or cannot be read, so nobody knows "
            "what it needs: `detdiffusion verify --repair` moves the artifact away"
        )
