"""What a stage's step is given, and how it speaks back."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from data.store import MANIFEST_NAME, Manifest

ConfigT_co = TypeVar("ConfigT_co", bound=BaseModel, covariant=True)

Progress = Callable[[int, int, str], None]
"""Called with units done, units in total and a short status."""

Summary = dict[str, Any]
"""A stage's headline results, plain JSON; becomes part of the manifest."""


@dataclass(frozen=True, slots=True)
class StepContext(Generic[ConfigT_co]):
    """Everything a step may use.

    Attributes:
        config: the stage's options.
        inputs: input name to the folder of its artifact.
        out: folder for the artifact's files; outlives a crash too, and is published as it is.
        work: folder that outlives a crash, for checkpoints and finished shards.
        key: the artifact's key.
        root: the artifact root; a step may take over from its own stage's earlier artifacts.
        num_workers: CPU cores to use.
        progress: reports progress.
    """

    config: ConfigT_co
    inputs: dict[str, Path]
    out: Path
    work: Path
    key: str
    root: Path
    num_workers: int
    progress: Progress

    def manifest(self, name: str) -> Manifest:
        """Manifest of an input's artifact."""
        return Manifest.model_validate_json((self.inputs[name] / MANIFEST_NAME).read_text())
