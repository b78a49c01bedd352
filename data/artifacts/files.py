"""Files and folders that are whole under their names, and errors of the disk that people can read."""

import errno
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from data.errors import StorageError

_SYNCING_THREADS = 8
"""What is asked for at once a file system brings to the disk at once, far faster than one by one."""


@contextmanager
def storage_errors(root: Path) -> Iterator[None]:
    """Turn a root without access, a full or failing disk or a file that is gone into `StorageError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"no space left under {root}: free some or set DETDIFFUSION_HOME elsewhere; "
                "finished steps are kept and a rerun goes on from them"
            ) from error
        path = Path(error.filename) if isinstance(error.filename, str | Path) else None
        is_ours = path is not None and _concerns(path, root)
        is_elsewhere = path is not None and path.is_absolute() and not is_ours
        if error.errno in (errno.EIO, errno.ESTALE) and not is_elsewhere:
            raise StorageError(
                f"the disk under {root} fails ({error}): run again, and if it stays so look at the disk, or "
                "set DETDIFFUSION_HOME elsewhere"
            ) from error
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP) and not error.filename:
            raise StorageError(without_locks(root, error.strerror)) from error
        if is_ours:
            if isinstance(error, FileNotFoundError):
                raise StorageError(
                    f"{error.filename}: no such file; run again: an artifact that lacks one is made anew"
                ) from error
            raise StorageError(
                f"cannot read or write artifacts under {root} ({error.filename}: {error.strerror}): "
                "set DETDIFFUSION_HOME to a folder that you can read and write"
            ) from error
        raise


def _concerns(path: Path, root: Path) -> bool:
    return path.is_relative_to(root) or root.is_relative_to(path)


@contextmanager
def durable_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that appears under its name by one rename, when its content is on the disk."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def names_in(folder: Path) -> list[str]:
    """Names of what is in a folder, in order; none where there is no such folder.

    Raises:
        OSError: it cannot be read.
    """
    try:
        return sorted(path.name for path in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def durable_rename(folder: Path, target: Path) -> None:
    """Give a folder the name under which it is whole, when its content is on the disk.

    Raises:
        OSError: there is a folder of that name that is not empty.
    """
    with ThreadPoolExecutor(_SYNCING_THREADS) as pool:
        deque(pool.map(sync, folder.rglob("*")), maxlen=0)
    sync(folder)
    folder.rename(target)
    sync(target.parent)


def without_locks(root: Path, cause: str | None) -> str:
    """What to say of a file system that has no locks."""
    return (
        f"locks do not work under {root} ({cause}), and two runs could make the same artifact at once: set "
        "DETDIFFUSION_HOME to a folder on a file system that has them"
    )


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Let errors say which file they are of; those of reading from an open one do not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
