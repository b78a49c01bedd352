"""What a run would find in the store: for every step hit, miss or stale, and why."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from data.artifacts.manifest import Manifest, changes
from data.artifacts.records import Record
from data.artifacts.store import ArtifactStore
from data.vocabulary.tables import Dataset
from tasks.execution.graph import Graph, Step


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step, and what a run would find.

    Attributes:
        state: there and intact; never made; or made with something different, or damaged.
        why: it is no hit.
    """

    step: Step
    state: Literal["hit", "miss", "stale"]
    why: str = ""


def plan(store: ArtifactStore, graph: Graph, records: Iterable[Record]) -> list[PlannedStep]:
    """Look every step up.

    Args:
        records: of earlier runs, the newest first; a step is compared with the one of its name.
    """
    read = cache(lambda: list(records))  # only where something is missing
    return [_planned(store, step, read) for step in graph]


def check(store: ArtifactStore, graph: Graph) -> None:
    """Hold every step's options against its data set, where that is ingested.

    Raises:
        PipelineError: an option cannot be met.
    """
    datasets: dict[str, Dataset] = {}
    for step in graph:
        source = step.inputs.get("ingest")
        if source is None or store.read(source.identity.kind, source.identity.key) is None:
            continue
        folder = store.root / source.identity.reference
        dataset = datasets.setdefault(source.identity.reference, Dataset(folder))
        step.options.check(dataset)


def _planned(store: ArtifactStore, step: Step, records: Callable[[], list[Record]]) -> PlannedStep:
    kind, key = step.identity.kind, step.identity.key
    if store.lookup(kind, key):
        return PlannedStep(step, "hit")
    manifest = store.read(kind, key)
    if manifest is not None:
        damaged = store.damage(manifest)
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        return PlannedStep(step, "stale", f"missing or damaged: {damaged[0]}{more}")
    if any(item.key == key for record in records() for item in record.steps if item.kind == kind):
        return PlannedStep(step, "miss", "never finished, or removed")
    earlier = _earlier(store, step, records())
    if earlier is None:
        return PlannedStep(step, "miss", "never made")
    return PlannedStep(step, "stale", "; ".join(_causes(earlier, step)))


def _earlier(store: ArtifactStore, step: Step, records: Iterable[Record]) -> Manifest | None:
    """The artifact that the newest run with a step of this name and kind had."""
    for record in records:
        for name in step.names:
            found = record.step(name)
            if found and found.kind == step.kind.name:
                manifest = store.read(found.kind, found.key)
                if manifest:
                    return manifest
    return None


def _causes(earlier: Manifest, step: Step) -> list[str]:
    names: Mapping[str, str] = {name: source.name for name, source in step.inputs.items()}
    return [
        f"{names.get(line.removeprefix('input '), line)} changed"
        if line.startswith("input ")
        else line
        for line in changes(earlier, step.identity)
    ]
