"""The checkpoint that a killed training goes on from."""

import errno
import io
import logging
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from data.errors import StorageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

logger = logging.getLogger(__name__)

_SET_ASIDE = "checkpoint.damaged"
"""One file in a folder, the newest of those that were found at once, for people to look at."""


def newest_checkpoint(paths: Iterable[Path]) -> Path | None:
    """The last of a training's checkpoints that is whole; damaged ones after it are set aside, and named.

    Args:
        paths: files of `torch.save`, the oldest first.

    Raises:
        StorageError: one cannot be read, so that nobody knows whether it is whole.
    """
    whole, damaged = None, []
    for path in reversed(list(paths)):
        try:
            if _is_whole(path):
                whole = path
                break
        except FileNotFoundError:  # another process of the training has set it aside
            continue
        except OSError as error:
            raise StorageError(
                f"the checkpoint {path} cannot be read ({error.strerror}), and nothing was changed: run again"
            ) from error
        damaged.append(path)
    for path in reversed(damaged):
        aside = path.with_name(_SET_ASIDE)
        logger.warning(
            "checkpoint %s is damaged and becomes %s: the one before it is taken", path, aside.name
        )
        with suppress(FileNotFoundError):
            path.replace(aside)
    return whole


def _is_whole(path: Path) -> bool:
    """Whether torch can open a file, and its content has the check sums in it, which torch leaves unread.

    Raises:
        OSError: it cannot be opened or read.
    """
    with _Reader(io.FileIO(path)) as file:
        try:
            torch._C.PyTorchFileReader(file)  # noqa: SLF001  # stricter with the table of contents
            with zipfile.ZipFile(file) as archive:
                is_whole = archive.testzip() is None
        except (OSError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile, zlib.error):
            is_whole = False
        if file.error:
            raise file.error
        return is_whole


class _Reader(io.BufferedReader):
    """A file that remembers what kept it from being read, for torch and zipfile make other errors of it."""

    error: OSError | None = None

    def read(self, size: int | None = -1, /) -> bytes:
        """Read so many bytes, or all."""
        with self._remembered():
            return super().read(size)

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        """Fill a buffer."""
        with self._remembered():
            return super().readinto(buffer)

    def seek(self, target: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to a place; one that no file has is the content's fault."""
        with self._remembered():
            return super().seek(target, whence)

    @contextmanager
    def _remembered(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno != errno.EINVAL:
                self.error = error
            raise
