"""Whether the step of an artifact makes the same once more."""

import shutil
from pathlib import Path

from data.artifacts.comparison import Differences, differences, file_differences
from data.artifacts.digests import DigestMemory
from data.artifacts.manifest import Manifest
from data.artifacts.records import read_records
from data.artifacts.store import ArtifactStore
from data.errors import InvalidManifest, StorageError
from data.progress import Progress
from flows.command_options import show_digests
from flows.request import Request
from tasks.catalogue import KINDS
from tasks.execution.graph import Graph


def rebuilt_differences(
    store: ArtifactStore, manifest: Manifest, progress: Progress
) -> tuple[dict[str, Differences], Path | None]:
    """Make an artifact anew, from its inputs in the store, and say in what its files differ, by topic.

    Nothing in the store changes. Files that say how long something took are not compared.

    Returns:
        What differs, and the folder in the artifact's work folder where the new files are; nothing and None
        where all are the same.

    Raises:
        InvalidManifest: today's code does not make this artifact.
        StorageError: somebody works on it.
        PipelineError: its step fails, or an input is missing.
    """
    from tasks.execution.rebuilding import rebuild  # noqa: PLC0415  # loads what other commands need not

    graph = _graph(store, manifest)
    with store.lock_if_free(manifest.kind, manifest.key) as is_free:
        if not is_free:
            raise StorageError("somebody works on it")
        new, folder = rebuild(store, graph, graph.steps[manifest.reference], progress)
        timed = KINDS[manifest.kind].timed
        changed = file_differences(manifest, new).items()
        files = {name: pair for name, pair in changed if name not in timed}
        if not files:
            shutil.rmtree(store.work(manifest.kind, manifest.key))
            return {}, None
    environment = differences(manifest.environment, new.environment)
    return {"files": files} | ({"environment": environment} if environment else {}), folder


def _graph(store: ArtifactStore, manifest: Manifest) -> Graph:
    """The graph of the newest run that has an artifact, which knows where the files lie that it names.

    Raises:
        InvalidManifest: there is none, or today's code makes another artifact.
    """
    now = KINDS[manifest.kind].versions if manifest.kind in KINDS else {}
    if changed := differences(manifest.versions, now):
        told = ", ".join(f"{name} {old} → {new}" for name, (old, new) in changed.items())
        raise InvalidManifest(f"the code that makes it has changed since, version of {told}")
    for record in read_records(store.root):
        if any(step.reference == manifest.reference for step in record.steps):
            with DigestMemory(store.root, show_digests) as digests:
                graph = Request.recorded(record).graph(digests)
            if manifest.reference in graph.steps:
                return graph
            raise InvalidManifest(
                f"the options of its newest run, {record.id}, lead to another now: what it is made from has "
                "changed, or it was made without a training that had died"
            )
    raise InvalidManifest("no run's record has the options that it was made with")
