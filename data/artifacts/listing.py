"""What there is in a store, how it is, and who uses it."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from data.artifacts.inventory import artifacts, made_at, tree, unfinished
from data.artifacts.records import Record
from data.artifacts.roots import pinned
from data.artifacts.store import WORK_FOLDER, ArtifactStore

State = Literal["ok", "damaged", "unfinished", "unused"]


@dataclass(frozen=True, slots=True)
class Listed:
    """An artifact, or the work folder of one that is not finished.

    Attributes:
        reference: `kind/key`.
        state: by the sizes of its files; unused: intact, and in no run's record.
        bytes: of its files.
        changed: seconds since the epoch.
        step: what the newest run that uses it calls it; empty where none does.
        runs: records that use it, the newest first.
        pinned: itself.
    """

    reference: str
    state: State
    bytes: int
    changed: float
    step: str
    runs: tuple[Record, ...]
    pinned: bool


def listed(store: ArtifactStore, records: Iterable[Record]) -> list[Listed]:
    """All artifacts and all work folders, the newest first.

    Args:
        records: of the store, the newest first.
    """
    runs: dict[str, list[Record]] = defaultdict(list)
    steps: dict[str, str] = {}
    for record in records:
        for step in record.steps:
            runs[step.reference].append(record)
            steps.setdefault(step.reference, step.names[0])
    pins = pinned(store.root)

    def entry(reference: str, state: State, size: int, changed: float) -> Listed:
        return Listed(
            reference,
            "unused" if state == "ok" and reference not in runs else state,
            size,
            changed,
            steps.get(reference, ""),
            tuple(runs.get(reference, ())),
            reference in pins,
        )

    found = [
        entry(reference, "unfinished", *tree(store.root / WORK_FOLDER / reference))
        for reference in unfinished(store.root)
    ]
    for reference in artifacts(store.root):
        manifest = store.read(*reference.split("/"))
        state: State = "damaged" if manifest is None or store.wrong_sizes(manifest) else "ok"
        size, _ = tree(store.root / reference)
        found.append(entry(reference, state, size, made_at(store.root, reference)))
    return sorted(found, key=lambda item: item.changed, reverse=True)
