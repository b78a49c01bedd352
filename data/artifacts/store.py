"""Content-addressed artifacts on disk.

An artifact is a folder `<root>/<kind>/<key>/` whose key is a digest of everything that can change its
content. It appears by one rename with its `manifest.json` inside, so it is there whole or not at all;
`ArtifactStore.lookup` trusts it only while every file still has the recorded digest.
"""

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from data.artifacts.digests import DigestMemory, file_digest
from data.artifacts.files import durable_rename, names_in, naming, storage_errors, sync
from data.artifacts.identity import StepIdentity
from data.artifacts.manifest import LOG_NAME, MANIFEST_NAME, FileRecord, Manifest
from data.errors import InvalidConfig

if TYPE_CHECKING:
    from filelock import FileLock

WORK_FOLDER = ".work"

_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""Errors that tell that there is no such file; after any other nobody knows."""

_READABLE = stat.S_IRGRP | stat.S_IROTH


def default_root() -> Path:
    """The artifact root: `DETDIFFUSION_HOME`, or `artifacts` in the working folder.

    Raises:
        InvalidConfig: the variable has an address in it.
    """
    home = os.environ.get("DETDIFFUSION_HOME") or "artifacts"
    if "://" in home:
        raise InvalidConfig(
            f"DETDIFFUSION_HOME={home.partition('://')[0]}://…: the store is a folder on a disk; set "
            "DETDIFFUSION_REMOTE to the address"
        )
    return Path(home).expanduser().resolve()


class ArtifactStore:
    """Artifacts and work in progress under one root folder."""

    def __init__(self, root: Path):
        self.root = root
        self._verified: set[str] = set()

    def create_root(self) -> None:
        """Make the root folder.

        Raises:
            StorageError: it cannot be made or written to.
        """
        with storage_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            if not os.access(self.root, os.W_OK):
                raise PermissionError(errno.EACCES, "Permission denied", str(self.root))

    def path(self, kind: str, key: str) -> Path:
        """Folder of a finished artifact."""
        return self.root / kind / key

    def work(self, kind: str, key: str) -> Path:
        """Folder for shard outputs and checkpoints of an unfinished artifact, found again by key."""
        folder = self.root / WORK_FOLDER / kind / key
        with storage_errors(self.root):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def lock(self, kind: str, key: str) -> "FileLock":
        """Lock that keeps two processes from making, or removing, an artifact at once; see `holder`."""
        from filelock import FileLock  # noqa: PLC0415  # brings asyncio and ssl, which a plan goes without

        folder = self.root / ".locks"
        with storage_errors(self.root):
            folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{kind}-{key}", on_acquired=sign)

    @contextmanager
    def lock_if_free(self, kind: str, key: str) -> Iterator[bool]:
        """Hold an artifact's lock where nobody does; yields whether it is held now."""
        from filelock import Timeout  # noqa: PLC0415  # as above

        lock = self.lock(kind, key)
        try:
            with storage_errors(self.root):
                lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    @contextmanager
    def lock_in_turn(
        self,
        kind: str,
        key: str,
        waits: Callable[[str], None],
        cancel_check: Callable[[], bool] | None = None,
    ) -> Iterator[None]:
        """Hold a lock, after whoever has it.

        Args:
            waits: told who has it, where it must be waited for.
            cancel_check: asked meanwhile.

        Raises:
            filelock.Timeout: it was cancelled.
        """
        from filelock import Timeout  # noqa: PLC0415  # as above

        lock = self.lock(kind, key)
        with storage_errors(self.root):
            with suppress(Timeout):
                lock.acquire(blocking=False)
            if not lock.is_locked:
                waits(holder(lock))
                lock.acquire(cancel_check=cancel_check)
        try:
            yield
        finally:
            lock.release()

    def locked(self) -> set[str]:
        """`kind/key` of the artifacts whose lock somebody holds."""
        folder = self.root / ".locks"
        with storage_errors(self.root):
            locks = [name for name in names_in(folder) if "-" in name]
            held = [name.rpartition("-") for name in locks if _is_held(folder / name)]
        return {f"{kind}/{key}" for kind, _, key in held}

    def has(self, kind: str, key: str) -> bool:
        """Whether there is an artifact, intact or not.

        Raises:
            StorageError: that cannot be seen.
        """
        with storage_errors(self.root):
            return (self.path(kind, key) / MANIFEST_NAME).is_file()

    def read(self, kind: str, key: str) -> Manifest | None:
        """Read a manifest without checking the files; None if absent, damaged or of another artifact.

        Raises:
            StorageError: it cannot be read.
        """
        path = self.path(kind, key) / MANIFEST_NAME
        with storage_errors(self.root), naming(path):
            try:
                manifest = Manifest.model_validate_json(path.read_text())
            except (*_ABSENT, ValidationError, UnicodeDecodeError):
                return None
        meant = {manifest.reference, manifest.identity.reference}
        return manifest if meant == {f"{kind}/{key}"} else None

    def manifest(self, reference: str) -> Manifest | None:
        """What `read` gives of an artifact by its `kind/key`."""
        return self.read(*reference.split("/"))

    def lookup(self, kind: str, key: str) -> Manifest | None:
        """Return the manifest of an intact artifact, None if it is absent or damaged.

        Raises:
            StorageError: a file cannot be read, so that nobody knows.
        """
        manifest = self.read(kind, key)
        if manifest is None or self.damage(manifest):
            return None
        self._verified.add(manifest.reference)
        return manifest

    def is_there(self, kind: str, key: str) -> bool:
        """Whether an artifact is intact; what this object has verified before is not read again.

        Raises:
            StorageError: a file cannot be read, so that nobody knows.
        """
        manifest = self.read(kind, key)
        if manifest is None or manifest.reference not in self._verified:
            return self.lookup(kind, key) is not None
        return not self.wrong_sizes(manifest)

    def damage(
        self, manifest: Manifest, suffix: str = "", *, remembered: bool = False
    ) -> list[str]:
        """Files of an artifact that are missing or do not have their recorded content.

        Args:
            suffix: of the names that are looked at; all by default.
            remembered: do not read again what has the size and the time of change that it had.

        Raises:
            StorageError: a file cannot be read.
        """
        folder = self.root / manifest.reference
        files = {k: record for k, record in manifest.files.items() if k.endswith(suffix)}
        if remembered:
            with suppress(OSError), DigestMemory(self.root) as digests:  # below: of which file
                found = digests.files([folder / name for name in files])
                pairs = zip(files.items(), found, strict=True)
                return [name for (name, record), digest in pairs if digest != record.sha256]
        with storage_errors(self.root):
            return [
                name for name, record in files.items() if not is_intact(f"{folder}/{name}", record)
            ]

    def wrong_sizes(self, manifest: Manifest) -> list[str]:
        """Files of an artifact that are missing or do not have their recorded size.

        Raises:
            StorageError: that of a file cannot be seen.
        """
        folder = str(self.root / manifest.reference)
        with storage_errors(self.root):
            return [
                name
                for name, record in manifest.files.items()
                if not _has_size(f"{folder}/{name}", record.size)
            ]

    def ancestors(self, manifest: Manifest) -> dict[str, Manifest]:
        """The artifacts that an artifact was made from, directly or not, by `kind/key`; files unchecked."""
        found: dict[str, Manifest] = {}
        waiting = [*manifest.inputs.values()]
        for reference in waiting:  # which grows meanwhile
            if reference not in found and (parent := self.manifest(reference)):
                found[reference] = parent
                waiting += parent.inputs.values()
        return found

    def publish(
        self,
        identity: StepIdentity,
        out: Path,
        *,
        summary: Mapping[str, Any],
        environment: Mapping[str, Any],
        seconds: float,
        peak_memory_bytes: int,
        created_at: str,
    ) -> Manifest:
        """Move a finished output folder, and the step's log, into the store; delete its work folder.

        Args:
            out: folder on the same file system as the root; consumed.

        Raises:
            StorageError: the disk is full or not writable; `out` is left as it was.
        """
        with storage_errors(self.root):
            work = self.root / WORK_FOLDER / identity.reference
            names = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
            recorded = sorted(names - {MANIFEST_NAME, LOG_NAME})
            manifest = Manifest(
                kind=identity.kind,
                key=identity.key,
                versions=identity.versions,
                options=identity.options,
                foreign=identity.foreign,
                inputs=identity.inputs,
                files={name: _record(out / name) for name in recorded},
                summary=dict(summary),
                environment=dict(environment),
                seconds=seconds,
                peak_memory_bytes=peak_memory_bytes,
                created_at=created_at,
            )
            (out / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=1))
            _let_read([out / name for name in recorded], out / MANIFEST_NAME)
            if (work / LOG_NAME).exists():
                shutil.copyfile(work / LOG_NAME, out / LOG_NAME)
            self.admit(manifest, out)
        return manifest

    def admit(self, manifest: Manifest, out: Path) -> None:
        """Move a folder that has an artifact's files and manifest into the store; delete its work folder.

        Args:
            out: folder in the artifact's work folder; consumed.
        """
        target = self.root / manifest.reference
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():  # and is damaged
            shutil.rmtree(out.with_name("damaged"), ignore_errors=True)
            target.rename(out.with_name("damaged"))
        durable_rename(out, target)
        sync(self.root)  # whose entry the kind's folder is
        self._verified.add(manifest.reference)
        shutil.rmtree(self.root / WORK_FOLDER / manifest.reference, ignore_errors=True)


def holder(lock: "FileLock") -> str:
    """Who has a signed lock, or had it last: process, machine, since when."""
    return Path(lock.lock_file).read_text()


def _is_held(lock: Path) -> bool:
    """Whether somebody holds a lock; asks for a part of it, for reading, and leaves its file as it is."""
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def sign(descriptor: int) -> None:
    """Write into a lock's file who has it now, for `holder`."""
    now = datetime.now(UTC)
    text = f"process {os.getpid()} on {os.uname().nodename} since {now:%Y-%m-%d %H:%M:%S} UTC"
    with suppress(OSError):  # a full disk must not keep gc from making room
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)


def _record(path: Path) -> FileRecord:
    return FileRecord(size=path.stat().st_size, sha256=file_digest(path))


def _let_read(paths: Iterable[Path], other: Path) -> None:
    """Let whoever can read another file read these; safetensors leaves its own to their maker alone."""
    usual = stat.S_IMODE(other.stat().st_mode)
    for path in paths:
        if usual & _READABLE & ~path.stat().st_mode:
            path.chmod(usual)


def _has_size(path: str | Path, size: int) -> bool:
    try:
        return os.stat(path).st_size == size  # noqa: PTH116  # thousands of files, by text
    except _ABSENT:
        return False


def is_intact(path: str | Path, record: FileRecord) -> bool:
    """Whether a file is there and has its recorded content.

    Raises:
        OSError: it cannot be read, so that nobody knows.
    """
    try:
        return _has_size(path, record.size) and file_digest(path) == record.sha256
    except _ABSENT:
        return False
