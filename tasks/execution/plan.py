"""What a run would find in the store: for every step hit, miss or stale, and why."""

from collections.abc import Callable, Iterable
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
    """Hold options of steps that have no artifact against their data sets, where these are there.

    Raises:
        PipelineError: an option cannot be met.
    """
    datasets: dict[str, Dataset | None] = {}
    for step in graph:
        source = step.inputs.get("ingest")
        if source is None or store.has(step.kind.name, step.identity.key):
            continue
        reference = source.identity.reference
        if reference not in datasets:
            datasets[reference] = _dataset(store, source)
        if dataset := datasets[reference]:
            step.options.check(dataset)


def note_places(store: ArtifactStore, graph: Graph) -> None:
    """Note beside the artifacts where on this machine the files lie that they refer to."""
    for step in graph:
        artifact = store.root / step.identity.reference
        if artifact.is_dir():
            step.options.note_places(artifact)


def _dataset(store: ArtifactStore, ingest: Step) -> Dataset | None:
    manifest = store.read(ingest.identity.kind, ingest.identity.key)
    if manifest is None or store.damage(manifest, ".parquet"):
        return None
    return Dataset(store.root / manifest.reference)


def _planned(store: ArtifactStore, step: Step, records: Callable[[], list[Record]]) -> PlannedStep:
    kind, key = step.identity.kind, step.identity.key
    manifest = store.read(kind, key)
    if manifest is not None:
        damaged = store.damage(manifest)
        if not damaged:
            return PlannedStep(step, "hit")
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        return PlannedStep(step, "stale", f"missing or damaged: {damaged[0]}{more}")
    if earlier := _earlier(store, step, records()):
        names = {name: source.name for name, source in step.inputs.items()}
        return PlannedStep(step, "stale", "; ".join(changes(earlier, step.identity, names)))
    asked_for = ((item.kind, item.key) for record in records() for item in record.steps)
    why = "never finished, or removed" if (kind, key) in asked_for else "never made"
    return PlannedStep(step, "miss", why)


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
