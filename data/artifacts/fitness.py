"""Whether a folder can be a store: what is found by each check of it."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import psutil

from data.artifacts.files import storage_errors, without_locks
from data.artifacts.records import record_files
from data.artifacts.store import ArtifactStore
from data.errors import StorageError

_LITTLE_SPACE = 1_000_000_000
"""Bytes."""

_BUCKETS = ("s3", "gcsfuse", "goofys", "geesefs", "rclone", "blobfuse")
"""In the names of file systems that show a bucket as a folder."""


def require_fit(root: Path) -> None:
    """Make a store's root, where a store can be.

    Raises:
        StorageError: it cannot be made or written to, is a bucket shown as a folder, or has no locks.
    """
    with storage_errors(root):
        _file_system(root)
        ArtifactStore(root).create_root()
        _locks(root)


def _writable(root: Path) -> str:
    """Make the root and a file in it."""
    ArtifactStore(root).create_root()
    with storage_errors(root), tempfile.NamedTemporaryFile(dir=root, prefix=".doctor-") as file:
        file.write(b"content")
        file.flush()
        os.fsync(file.fileno())
    return str(root)


def _file_system(root: Path) -> str:
    """Refuse a bucket that is shown as a folder."""
    mounts = psutil.disk_partitions(all=True)
    above = [item for item in mounts if root.is_relative_to(item.mountpoint)]
    if not above:
        return "unknown"
    mount = max(above, key=lambda item: len(item.mountpoint))
    name = f"{mount.fstype} {mount.device}"
    if mount.fstype.startswith("fuse") and any(bucket in name for bucket in _BUCKETS):
        raise StorageError(
            f"{root} is a bucket shown as a folder ({name}), which has neither locks nor renames: set "
            "DETDIFFUSION_HOME to a folder on a disk and DETDIFFUSION_REMOTE to the bucket"
        )
    return str(mount.fstype)


def _locks(root: Path) -> str:
    """Refuse a file system on which two can hold the same lock."""
    cause = "it was held twice"
    with (
        tempfile.NamedTemporaryFile(dir=root, prefix=".doctor-") as file,
        Path(file.name).open("r+b") as again,  # NFS takes no exclusive lock of what is only read
    ):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "one holder at a time"
        except OSError as error:
            cause = str(error.strerror)
    raise StorageError(without_locks(root, cause))


def _space(root: Path) -> str:
    """Refuse a disk that is nearly full."""
    free = shutil.disk_usage(root).free
    if free < _LITTLE_SPACE:
        raise StorageError(
            f"{free / 1e9:.1f} GB are free under {root}: `detdiffusion gc` says what may go, or set "
            "DETDIFFUSION_HOME to a folder elsewhere"
        )
    return f"{free / 1e9:.1f} GB free"


def _marker(root: Path) -> str:
    """Refuse a folder that has things in it and is no store."""
    runs = len(record_files(root))
    others = [item.name for item in root.iterdir() if not item.name.startswith(".")]
    if others and not runs:
        raise StorageError(
            f"{root} has things in it, {min(others)} is one, and no run is recorded in its folder runs: set "
            "DETDIFFUSION_HOME to a store, or to a folder of its own"
        )
    return "1 run is recorded" if runs == 1 else f"{runs} runs are recorded"


CHECKS: Mapping[str, Callable[[Path], str]] = MappingProxyType(
    {
        "writable": _writable,
        "file system": _file_system,
        "locks": _locks,
        "space": _space,
        "marker": _marker,
    }
)
"""By what they look at; each says what it found, or raises `StorageError` or `OSError`."""
