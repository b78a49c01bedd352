"""What runs and studies have found, by their records."""

import math
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

from data.artifacts.manifest import Manifest
from data.artifacts.records import Record, read_records
from data.artifacts.store import ArtifactStore
from data.errors import ArtifactMissing
from flows.nodes import REPORT
from flows.studies import CONCLUSION

Read = Callable[[str], Manifest | None]


def newest_reports(
    store: ArtifactStore, study: str | None = None
) -> tuple[Record, dict[str, Manifest]]:
    """The newest run or study whose reports are all there, and those by the names of their steps.

    Args:
        study: name of the study that is meant; None for any run or study.

    Raises:
        ArtifactMissing: there is none.
    """
    for record in read_records(store.root):
        if record.stage not in (None, "evaluate"):
            continue
        if study is not None and (record.what, record.name) != ("study", study):
            continue
        if there := reports_of(store.manifest, record):
            return record, there
    if study is not None:
        raise ArtifactMissing(
            f"no finished study {study!r} under {store.root}: run `detdiffusion study` with it first"
        )
    raise ArtifactMissing(f"no finished run under {store.root}: run `detdiffusion run demo` first")


def reports_of(read: Read, record: Record) -> dict[str, Manifest]:
    """The reports of a run or study by the names of their steps; none where one is not there.

    Args:
        read: an artifact's manifest, by its `kind/key`.
    """
    steps = [step for step in record.steps if step.kind in {"report", "conclude"}]
    found = {name: read(step.reference) for step in steps for name in step.names}
    there = {name: manifest for name, manifest in found.items() if manifest is not None}
    return there if len(there) == len(found) else {}


def flat_results(read: Read, record: Record, reports: Mapping[str, Manifest]) -> dict[str, float]:
    """A run's numbers with its cost; a study's answers, and its runs' numbers after the run's name.

    `seconds_total` is the sum of the steps' wall-clock times when they were made, `seconds_wall` the time in
    which at least one of them was being made, `peak_memory_gb` the most resident memory that the processes of
    any one of them held.
    """
    results = {
        f"{name.removesuffix(REPORT).removesuffix(CONCLUSION)}{key}": value
        for name, manifest in reports.items()
        for key, value in manifest.summary["results"].items()
    }
    steps = list(filter(None, (read(step.reference) for step in record.steps)))
    return {
        **results,
        "seconds_total": round(sum(item.seconds for item in steps), 1),
        "seconds_wall": round(_covered([_span(item) for item in steps]), 1),
        "peak_memory_gb": round(max(item.peak_memory_bytes for item in steps) / 1e9, 2),
    }


def _span(manifest: Manifest) -> tuple[float, float]:
    """When a step was begun and done, seconds since the epoch."""
    done = datetime.fromisoformat(manifest.created_at).timestamp()
    return done - manifest.seconds, done


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of spans of time.

    >>> _covered([(0, 2), (1, 3), (10, 11)])
    4.0
    """
    covered, until = 0.0, -math.inf
    for begin, end in sorted(spans):
        covered += max(end - max(begin, until), 0.0)
        until = max(until, end)
    return covered


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
