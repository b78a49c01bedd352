"""What there is in a store, how it is, and who uses it."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal

from data.artifacts.files import storage_errors
from data.artifacts.inventory import artifacts, made_at, tree, unfinished
from data.artifacts.records import Record
from data.artifacts.store import WORK_FOLDER, ArtifactStore

State = Literal["ok", "damaged", "unfinished", "unused", "remote"]


@dataclass(frozen=True, slots=True)
class Found:
    """An artifact, or the work folder of one that is not finished.

    Attributes:
        reference: `kind/key`.
        state: by the sizes of its files; unused: intact, and in no run's record; remote: only there.
        bytes: of its files.
        changed: seconds since the epoch.
    """

    reference: str
    state: State
    bytes: int
    changed: float


@dataclass(frozen=True, slots=True)
class Listed(Found):
    """What was found, and who uses it.

    Attributes:
        step: what the newest run that uses it calls it; empty where none does.
        runs: records that use it, the newest first.
        pinned: itself.
    """

    step: str
    runs: tuple[Record, ...]
    pinned: bool


def in_store(store: ArtifactStore) -> Iterator[Found]:
    """All artifacts of a store, and all its work folders."""
    with storage_errors(store.root):
        for reference in unfinished(store.root):
            yield Found(reference, "unfinished", *tree(store.root / WORK_FOLDER / reference))
        for reference in artifacts(store.root):
            manifest = store.manifest(reference)
            state: State = "damaged" if manifest is None or store.wrong_sizes(manifest) else "ok"
            size, _ = tree(store.root / reference)
            yield Found(reference, state, size, made_at(store.root, reference))


def listed(
    found: Iterable[Found], records: Iterable[Record], pins: AbstractSet[str]
) -> list[Listed]:
    """What was found, the newest first, and who uses it.

    Args:
        records: of the same place, the newest first.
        pins: likewise.
    """
    runs: dict[str, list[Record]] = defaultdict(list)
    steps: dict[str, str] = {}
    for record in records:
        for step in record.steps:
            runs[step.reference].append(record)
            steps.setdefault(step.reference, step.names[0])
    entries = (
        Listed(
            item.reference,
            "unused" if item.state == "ok" and item.reference not in runs else item.state,
            item.bytes,
            item.changed,
            steps.get(item.reference, ""),
            tuple(runs.get(item.reference, ())),
            item.reference in pins,
        )
        for item in found
    )
    return sorted(entries, key=lambda item: item.changed, reverse=True)
