"""Content-addressed artifacts on disk.

An artifact is a folder `<root>/<stage>/<key>/` whose key is a digest of everything that can change
its content. It appears by one rename with its `manifest.json` inside, so it is there whole or not at
all; `ArtifactStore.lookup` trusts it only while every file still has the recorded digest.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

from data.errors import StorageError

MANIFEST_NAME = "manifest.json"

_LATEST = "latest"


class RuntimeOnly:
    """Marks a config field (`Annotated[int, RuntimeOnly]`) that cannot change a stage's output."""


class FileRecord(BaseModel):
    """Size in bytes and SHA-256 of one file of an artifact."""

    model_config = ConfigDict(frozen=True)

    size: int
    sha256: str


class Manifest(BaseModel):
    """What an artifact is, what made it, and what is in it.

    Attributes:
        stage: name of the stage.
        key: digest that names the artifact's folder.
        version: version of the stage's code, bumped by hand when its output changes.
        config: the stage's options that are part of the key.
        inputs: input name to the key of the artifact it came from.
        files: path relative to the artifact's folder to its record.
        summary: the stage's headline results, plain JSON.
        environment: git commit, package versions, device.
        seconds: wall-clock time of the stage.
        peak_memory_bytes: highest resident memory of the process tree while the stage ran.
        created_at: ISO 8601, UTC.
    """

    model_config = ConfigDict(frozen=True)

    stage: str
    key: str
    version: int
    config: dict[str, Any]
    inputs: dict[str, str]
    files: dict[str, FileRecord]
    summary: dict[str, Any]
    environment: dict[str, Any]
    seconds: float
    peak_memory_bytes: int
    created_at: str


@dataclass(frozen=True, slots=True)
class StageIdentity:
    """Everything that determines a stage's output, and therefore its key."""

    stage: str
    version: int
    config: dict[str, Any]
    inputs: dict[str, str]

    @property
    def key(self) -> str:
        """SHA-256 of the canonical JSON of the identity, 32 hexadecimal digits."""
        document = {
            "stage": self.stage,
            "version": self.version,
            "config": self.config,
            "inputs": self.inputs,
        }
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def keyed_options(config: BaseModel) -> dict[str, Any]:
    """Dump a config without the fields marked `RuntimeOnly`, at any depth, as plain JSON."""
    options: dict[str, Any] = {}
    dumped = config.model_dump(mode="json")
    for name, field in type(config).model_fields.items():
        if RuntimeOnly in field.metadata:
            continue
        value = getattr(config, name)
        options[name] = keyed_options(value) if isinstance(value, BaseModel) else dumped[name]
    return options


def digest_file(path: Path) -> FileRecord:
    """Read a file once and return its size and SHA-256."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(size=path.stat().st_size, sha256=digest)


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names and sizes of all files in a folder, none of them read."""
    digest = hashlib.sha256()
    for parent, _, names in sorted(os.walk(folder)):
        for name in sorted(names):
            line = f"{parent}/{name}/{(Path(parent) / name).stat().st_size}\n"
            digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def contents_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of all files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        digest.update(f"{path.relative_to(folder)} {digest_file(path).sha256}\n".encode())
    return digest.hexdigest()


@contextmanager
def storage_errors(root: Path) -> Iterator[None]:
    """Turn an unwritable root or a full disk into `StorageError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"no space left under {root}: free some or set DETDIFFUSION_HOME elsewhere; "
                "finished stages are kept and a rerun goes on from them"
            ) from error
        if isinstance(error.filename, str | Path) and _concerns(Path(error.filename), root):
            raise StorageError(
                f"cannot write artifacts under {root} ({error.strerror}): "
                "set DETDIFFUSION_HOME to a folder you can write to"
            ) from error
        raise


def _concerns(path: Path, root: Path) -> bool:
    return path.is_relative_to(root) or root.is_relative_to(path)


class ArtifactStore:
    """Artifacts and work in progress under one root folder."""

    def __init__(self, root: Path):
        self.root = root

    def create_root(self) -> None:
        """Make the root folder.

        Raises:
            StorageError: it cannot be made or written to.
        """
        with storage_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            if not os.access(self.root, os.W_OK):
                raise PermissionError(errno.EACCES, "Permission denied", str(self.root))

    def path(self, stage: str, key: str) -> Path:
        """Folder of a finished artifact."""
        return self.root / stage / key

    def work(self, stage: str, key: str) -> Path:
        """Folder for shard outputs and checkpoints of an unfinished artifact, found again by key."""
        folder = self.root / ".work" / stage / key
        with storage_errors(self.root):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def lock(self, stage: str, key: str) -> FileLock:
        """Lock that keeps two processes from making the same artifact at once."""
        folder = self.root / ".locks"
        with storage_errors(self.root):
            folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{stage}-{key}")

    def read(self, stage: str, key: str) -> Manifest | None:
        """Read a manifest without checking the files; None if absent or unreadable."""
        try:
            text = (self.path(stage, key) / MANIFEST_NAME).read_text()
            return Manifest.model_validate_json(text)
        except (OSError, ValidationError, UnicodeDecodeError):
            return None

    def lookup(self, stage: str, key: str) -> Manifest | None:
        """Return the manifest of an intact artifact, None if it is absent or damaged."""
        manifest = self.read(stage, key)
        return manifest if manifest and not self.damage(manifest) else None

    def damage(self, manifest: Manifest) -> list[str]:
        """Files of an artifact that are missing or do not have their recorded content."""
        folder = self.path(manifest.stage, manifest.key)
        return [
            name for name, record in manifest.files.items() if not _intact(folder / name, record)
        ]

    def manifests(self, stage: str) -> Iterator[Manifest]:
        """Manifests of all of a stage's artifacts, the newest first, their files unchecked."""
        folders = (self.root / stage).glob("*/")
        found = [self.read(stage, item.name) for item in folders if not item.is_symlink()]
        yield from sorted(filter(None, found), key=lambda item: item.created_at, reverse=True)

    def mark_latest(self, manifest: Manifest) -> None:
        """Point the link `<root>/<stage>/latest` at an artifact that a run has made or used."""
        link = self.root / manifest.stage / _LATEST
        temporary = link.with_name(f".{_LATEST}-{os.getpid()}")
        with storage_errors(self.root):
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(manifest.key)
            temporary.replace(link)

    def latest(self, stage: str) -> Manifest | None:
        """The artifact that the last run made or used, unchecked; None if there is none."""
        return self.read(stage, _LATEST)

    def publish(
        self,
        identity: StageIdentity,
        out: Path,
        *,
        summary: Mapping[str, Any],
        environment: Mapping[str, Any],
        seconds: float,
        peak_memory_bytes: int,
        created_at: str,
    ) -> Manifest:
        """Move a finished output folder into the store and delete the stage's work folder.

        Args:
            out: folder on the same file system as the root; consumed.

        Raises:
            StorageError: the disk is full or not writable; `out` is left as it was.
        """
        with storage_errors(self.root):
            names = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
            manifest = Manifest(
                stage=identity.stage,
                key=identity.key,
                version=identity.version,
                config=identity.config,
                inputs=identity.inputs,
                files={name: digest_file(out / name) for name in names if name != MANIFEST_NAME},
                summary=dict(summary),
                environment=dict(environment),
                seconds=seconds,
                peak_memory_bytes=peak_memory_bytes,
                created_at=created_at,
            )
            (out / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=1))
            _sync_tree(out)
            target = self.path(identity.stage, identity.key)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                shutil.rmtree(target)
            out.rename(target)
            _sync(target.parent)
        shutil.rmtree(self.root / ".work" / identity.stage / identity.key, ignore_errors=True)
        return manifest


def _intact(path: Path, record: FileRecord) -> bool:
    try:
        return path.stat().st_size == record.size and digest_file(path) == record
    except OSError:
        return False


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def explain_miss(identity: StageIdentity, latest: Manifest | None) -> str:
    """Say in one line which part of the key has no artifact, compared with the last one used."""
    if latest is None:
        return "never made"
    changes = []
    if latest.version != identity.version:
        changes.append(f"stage version {latest.version} → {identity.version}")
    changes += [
        f"{name}: {old!r} → {new!r}"
        for name, old, new in _differences(latest.config, identity.config)
    ]
    changes += [
        f"input {name} changed"
        for name in identity.inputs
        if latest.inputs.get(name) != identity.inputs[name]
    ]
    return "; ".join(changes) or "missing or damaged files"


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, f"{prefix}{name}.")
        elif before != after:
            yield f"{prefix}{name}", before, after
