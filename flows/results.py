"""What runs and studies have found, by their records."""

from collections.abc import Callable, Mapping

from data.artifacts.manifest import Manifest
from data.artifacts.records import Record, read_records
from data.artifacts.store import ArtifactStore
from data.errors import ArtifactMissing
from flows.run_graph import REPORT


def newest_reports(store: ArtifactStore) -> tuple[Record, dict[str, Manifest]]:
    """The newest run or study whose reports are all there, and those by the names of their steps.

    Raises:
        ArtifactMissing: there is none.
    """
    for record in read_records(store.root):
        if record.stage not in (None, "evaluate"):
            continue
        steps = [step for step in record.steps if step.kind == "report"]
        found = {name: store.read(step.kind, step.key) for step in steps for name in step.names}
        there = {name: manifest for name, manifest in found.items() if manifest is not None}
        if there and len(there) == len(found):
            return record, there
    raise ArtifactMissing(f"no finished run under {store.root}: run `detdiffusion run demo` first")


def flat_results(
    store: ArtifactStore, record: Record, reports: Mapping[str, Manifest]
) -> dict[str, float]:
    """A run's numbers with its cost; those of a study's runs after the run's name.

    `seconds_total` is the sum of the steps' wall-clock times when they were made, `peak_memory_gb` the
    most resident memory that the processes of any one of them held.
    """
    results = {
        f"{name.removesuffix(REPORT)}{key}": value
        for name, manifest in reports.items()
        for key, value in manifest.summary["results"].items()
    }
    found = filter(None, (store.read(step.kind, step.key) for step in record.steps))
    steps = list(found)
    return {
        **results,
        "seconds_total": round(sum(item.seconds for item in steps), 1),
        "peak_memory_gb": round(max(item.peak_memory_bytes for item in steps) / 1e9, 2),
    }


def newest_artifact(
    store: ArtifactStore, kind: str, wanted: Callable[[Manifest], bool]
) -> Manifest | None:
    """The artifact of a kind that the newest run had which has one."""
    for record in read_records(store.root):
        for step in record.steps:
            manifest = store.read(step.kind, step.key) if step.kind == kind else None
            if manifest is not None and wanted(manifest):
                return manifest
    return None
