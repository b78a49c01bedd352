"""Making an artifact once more, apart from the store, to see whether its step makes the same."""

import shutil
from pathlib import Path

from data.artifacts.files import storage_errors
from data.artifacts.manifest import Manifest
from data.artifacts.store import ArtifactStore
from data.progress import Progress
from tasks.execution.graph import Graph, Step
from tasks.execution.plan import note_places
from tasks.execution.workshop import Workshop


def rebuild(
    store: ArtifactStore, graph: Graph, step: Step, progress: Progress
) -> tuple[Manifest, Path]:
    """Make the artifact of a step anew from the inputs in the store; the caller holds its lock.

    It is made in a store of its own within the artifact's work folder, where links lead to the graph's
    others: no checkpoint or finished shard of an earlier work is found there.

    Args:
        graph: that the step is of.

    Returns:
        The manifest of what was made, and its folder, which stays there for the caller to look at.

    Raises:
        PipelineError: as `Workshop.obtain`.
    """
    identity = step.identity
    apart = ArtifactStore(store.work(identity.kind, identity.key) / "rebuild")
    with storage_errors(store.root):
        shutil.rmtree(apart.root, ignore_errors=True)  # of one that was killed
        for reference in graph.steps.keys() - {identity.reference}:
            link = apart.root / reference
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(store.root / reference)
    note_places(apart, graph)
    manifest, _ = Workshop(apart, graph).obtain(step, progress)
    return manifest, apart.root / manifest.reference
