"""The checkpoint that a killed training goes on from."""

import logging
import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch

logger = logging.getLogger(__name__)


def newest_checkpoint(paths: Iterable[Path]) -> Path | None:
    """The last of a training's checkpoints that is whole; damaged ones after it are removed, and named.

    Args:
        paths: files of `torch.save`, the oldest first.
    """
    for path in reversed(list(paths)):
        if _is_whole(path):
            return path
        logger.warning("checkpoint %s is damaged and removed: the one before it is taken", path)
        path.unlink(missing_ok=True)
    return None


def _is_whole(path: Path) -> bool:
    """Whether torch can open a file, and its content has the check sums in it, which torch leaves unread."""
    try:
        torch._C.PyTorchFileReader(str(path))  # noqa: SLF001  # stricter with the table of contents
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile):
        return False
