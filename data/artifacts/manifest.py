"""Manifests: what an artifact is."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from data.artifacts.identity import StepIdentity

MANIFEST_NAME = "manifest.json"

LOG_NAME = "log.txt"
"""What a step's process printed; not among the files of a manifest, for it tells of time and place."""


class FileRecord(BaseModel):
    """Size in bytes and SHA-256 of one file of an artifact."""

    model_config = ConfigDict(frozen=True)

    size: int
    sha256: str


class Manifest(BaseModel):
    """What an artifact is, what made it, and what is in it.

    Attributes:
        kind: of the step that made it.
        key: digest that names the artifact's folder.
        versions: of the code that made it, see `StepIdentity`.
        options: those that are part of the key.
        foreign: option to the digest of what it names outside of the store.
        inputs: input's name to `kind/key` of the artifact it came from.
        files: path relative to the artifact's folder to its record.
        summary: the step's headline results, plain JSON.
        environment: git commit, package versions, device, GPUs that the step had, cores.
        seconds: wall-clock time of the step.
        peak_memory_bytes: most memory that the step's processes held.
        created_at: ISO 8601, UTC.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    kind: str
    key: str
    versions: dict[str, int]
    options: dict[str, Any]
    foreign: dict[str, str]
    inputs: dict[str, str]
    files: dict[str, FileRecord]
    summary: dict[str, Any]
    environment: dict[str, Any]
    seconds: float
    peak_memory_bytes: int
    created_at: str

    @property
    def reference(self) -> str:
        """`kind/key`: the artifact's folder under the store's root."""
        return f"{self.kind}/{self.key}"

    @property
    def identity(self) -> StepIdentity:
        """What determined it."""
        return StepIdentity(self.kind, self.versions, self.options, self.foreign, self.inputs)
