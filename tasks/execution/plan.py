"""What a run would find in the store: for every step hit, miss or stale, and why."""

import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Literal

from data.artifacts.comparison import Causes, Lineage
from data.artifacts.identity import StepIdentity
from data.artifacts.inventory import folders
from data.artifacts.manifest import Manifest
from data.artifacts.records import Record
from data.artifacts.remote import Remote
from data.artifacts.store import ArtifactStore
from data.artifacts.trash import removals
from data.artifacts.verification import damaged_files
from data.errors import ArtifactMissing, InvalidConfig, ServiceUnavailable, StorageError
from models.precision import visible_gpus
from tasks.execution.graph import Graph, Step

if TYPE_CHECKING:
    from data.vocabulary.tables import Dataset

logger = logging.getLogger(__name__)

_SOURCES_NAMED = 2
"""Steps that changed before one, in what is said of it."""


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step, and what a run would find.

    Attributes:
        state: there and intact; not there, but on the mirror; not there at all; or made with something
            different, or damaged.
        why: it is no hit.
        nearest: of all artifacts of its kind the one that differs least, where it was made differently.
        causes: in what that and what it was made from differ.
    """

    step: Step
    state: Literal["hit", "remote", "miss", "stale"]
    why: str = ""
    nearest: Manifest | None = None
    causes: Causes = field(default_factory=dict)


class Planner:
    """Says of the steps of a graph what a run would find.

    Args:
        records: of earlier runs.
        remote: the store's mirror; one that cannot be used has nothing, and a warning says so.
    """

    def __init__(
        self,
        store: ArtifactStore,
        graph: Graph,
        records: Iterable[Record],
        remote: Remote | None = None,
    ):
        self._store = store
        self._graph = graph
        self._records = records
        self._remote = remote
        self._removals = removals(store.root)
        self._read = cache(self._readable)
        self._of_kind = cache(self._artifacts)  # only where something is missing
        self._on_remote = cache(self._mirrored)
        self._asked_for = cache(self._recorded)
        self._lineage = Lineage(self._identity)

    def look_up(self, step: Step) -> PlannedStep:
        """Look a step up, and compare it with the artifact that differs least where it is not there."""
        identity = step.identity
        is_there = self._store.path(identity.kind, identity.key).is_dir()
        damaged = (
            damaged_files(self._store, identity.reference, remembered=True) if is_there else []
        )
        if is_there and not damaged:
            return PlannedStep(step, "hit")
        if self._remote and identity.reference in self._on_remote():
            return PlannedStep(step, "remote", "a run pulls it")
        if damaged:
            more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
            return PlannedStep(step, "stale", f"missing or damaged: {damaged[0]}{more}")
        if removal := self._removals.get(identity.reference):
            return PlannedStep(step, "miss", f"{removal.why} on {removal.at[:10]}")
        nearest = self._lineage.nearest(identity.reference, self._of_kind(identity.kind))
        if nearest is None:
            asked_for = identity.reference in self._asked_for()
            why = "never finished, or removed" if asked_for else "never made"
            return PlannedStep(step, "miss", why)
        causes = self._lineage.causes(nearest.reference, identity.reference)
        return PlannedStep(step, "stale", self._told(step, causes), nearest, causes)

    def _told(self, step: Step, causes: Causes) -> str:
        """The step's own changes, and the names of the first steps that changed before it."""
        own = [
            str(change)
            for (_, new), changes in causes.items()
            for change in changes
            if new == step.identity.reference
        ]
        sources = [new for _, new in causes if new != step.identity.reference]
        names = list(dict.fromkeys(self._graph.steps[new].name for new in sources))
        more = len(names) - _SOURCES_NAMED
        rest = [f"{more} more before it changed"] if more > 0 else []
        return "; ".join([*own, *(f"{name} changed" for name in names[:_SOURCES_NAMED]), *rest])

    def _identity(self, reference: str) -> StepIdentity | None:
        if step := self._graph.steps.get(reference):
            return step.identity
        manifest = self._read(*reference.split("/"))
        return manifest.identity if manifest else None

    def _readable(self, kind: str, key: str) -> Manifest | None:
        """An artifact's manifest; what cannot be read is nothing to compare with."""
        with suppress(StorageError):
            return self._store.read(kind, key)
        return None

    def _artifacts(self, kind: str) -> list[Manifest]:
        read = (self._read(kind, key) for key in folders(self._store.root / kind))
        return [manifest for manifest in read if manifest]

    def _mirrored(self) -> set[str]:
        """The graph's artifacts that the mirror has."""
        try:
            return self._remote.has(self._graph.steps) if self._remote else set()
        except ServiceUnavailable as error:
            logger.warning("planned without the remote: %s", error)
            return set()

    def _recorded(self) -> set[str]:
        return {step.reference for record in self._records for step in record.steps}


def plan(
    store: ArtifactStore, graph: Graph, records: Iterable[Record], remote: Remote | None = None
) -> list[PlannedStep]:
    """Look every step up, also on the store's mirror."""
    planner = Planner(store, graph, records, remote)
    return [planner.look_up(step) for step in graph]


def check(store: ArtifactStore, steps: Iterable[Step]) -> None:
    """Hold options of steps that have no artifact against GPUs, and data sets where these are there.

    Raises:
        PipelineError: an option cannot be met.
    """
    datasets: dict[str, Dataset | None] = {}
    num_gpus = len(visible_gpus())
    for step in steps:
        if store.has(step.kind.name, step.identity.key):
            continue
        asked = step.options.num_gpus if step.kind.preload else 0
        if 0 < num_gpus < asked:
            raise InvalidConfig(
                f"{step.name!r} is to have {asked} GPUs and this machine has {num_gpus}: lower its "
                "num_processes, or execution.num_workers"
            )
        step.options.check_without_data()
        source = step.inputs.get("ingest")
        if source is None:
            continue
        reference = source.identity.reference
        if reference not in datasets:
            datasets[reference] = _dataset(store, source)
        if dataset := datasets[reference]:
            step.options.check(dataset)
            inputs = {name: item.options for name, item in step.inputs.items()}
            step.options.check_inputs(dataset, inputs)


def require_inputs(store: ArtifactStore, steps: Iterable[Step]) -> None:
    """Refuse steps that have no artifact where an input neither has one nor is made before.

    Raises:
        ArtifactMissing: names the first such input, and the stage that makes it.
    """
    known: set[str] = set()
    for step in steps:
        known.add(step.identity.reference)
        if store.has(step.kind.name, step.identity.key):
            continue
        for source in step.inputs.values():
            identity = source.identity
            if identity.reference not in known and not store.has(identity.kind, identity.key):
                raise input_missing(step, source)


def input_missing(step: Step, source: Step) -> ArtifactMissing:
    """What is said of a step that cannot be made."""
    return ArtifactMissing(
        f"{step.name!r} needs the artifact {source.identity.reference} of {source.name!r}, which "
        f"is missing or damaged: run the stage {source.stages[0]} first, or end-to-end"
    )


def note_places(store: ArtifactStore, graph: Graph) -> None:
    """Note beside the artifacts where on this machine the files lie that they refer to."""
    for step in graph:
        artifact = store.root / step.identity.reference
        if artifact.is_dir():
            step.options.note_places(artifact)


def _dataset(store: ArtifactStore, ingest: Step) -> "Dataset | None":
    manifest = store.read(ingest.identity.kind, ingest.identity.key)
    if manifest is None or store.damage(manifest, ".parquet", remembered=True):
        return None
    from data.vocabulary.tables import Dataset  # noqa: PLC0415  # is slow to import

    return Dataset(store.root / manifest.reference)
