"""What a step is given, and how it speaks back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from data.artifacts.manifest import MANIFEST_NAME, Manifest
from data.artifacts.options import Options
from data.artifacts.store import ArtifactStore
from data.progress import Progress

OptionsT_co = TypeVar("OptionsT_co", bound=Options, covariant=True)

Summary = dict[str, Any]
"""A step's headline results, plain JSON; becomes part of the manifest."""

WARNINGS = "warnings"
"""In a summary: sentences that every run which has the artifact tells its user."""


@dataclass(frozen=True, slots=True)
class StepContext(Generic[OptionsT_co]):
    """Everything a step may use.

    Attributes:
        options: the step's options.
        inputs: input's name to the folder of its artifact.
        out: folder for the artifact's files; outlives a crash too, and is published as it is.
        work: folder that outlives a crash, for checkpoints and finished shards.
        key: the artifact's key.
        root: the artifact root.
        num_workers: CPU cores to use.
        progress: reports progress.
        foreign: digests of what options name outside of the store, as they are in the key.
    """

    options: OptionsT_co
    inputs: Mapping[str, Path]
    out: Path
    work: Path
    key: str
    root: Path
    num_workers: int
    progress: Progress
    foreign: Mapping[str, str] = field(default_factory=dict)

    def many(self, group: str) -> dict[str, Path]:
        """The inputs `group/…` by what follows the slash, in its order: that of a graph is not keyed."""
        prefix = f"{group}/"
        return {
            name.removeprefix(prefix): folder
            for name, folder in sorted(self.inputs.items())
            if name.startswith(prefix)
        }

    def manifest(self, name: str) -> Manifest:
        """Manifest of an input's artifact."""
        return Manifest.model_validate_json((self.inputs[name] / MANIFEST_NAME).read_text())

    def ancestors(self) -> list[Manifest]:
        """All artifacts that this one is made from, directly or not, the oldest first."""
        store = ArtifactStore(self.root)
        found: dict[str, Manifest] = {}
        for manifest in map(self.manifest, self.inputs):
            found |= {manifest.reference: manifest, **store.ancestors(manifest)}
        return sorted(found.values(), key=lambda item: item.created_at)


def artifact_name(folder: Path) -> str:
    """What tells an artifact from all others: its kind and key."""
    return f"{folder.parent.name}/{folder.name}"
