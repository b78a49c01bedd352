"""Where artifacts go before they are deleted, and what is remembered of them."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from data.artifacts.files import storage_errors
from data.artifacts.inventory import folders
from data.artifacts.store import ArtifactStore
from data.errors import StorageError

TRASH_FOLDER = ".trash"

_LOG = "removed.jsonl"


class Removal(msgspec.Struct, frozen=True):
    """That an artifact was moved to the trash.

    Attributes:
        reference: its `kind/key`.
        at: ISO 8601, UTC.
        why: what moved it.
    """

    reference: str
    at: str
    why: Literal["collected by gc", "damaged, moved away by verify"]


@dataclass(frozen=True, slots=True)
class Trash:
    """The trash of a store while nobody else uses it.

    Attributes:
        root: of the store.
        batch: what is moved here goes there; what is beside it is from earlier.
    """

    root: Path
    batch: Path

    def move(self, path: str, removal: Removal) -> None:
        """Move a folder of the store here, by one rename, and remember it.

        Args:
            path: relative to the root.
        """
        target = self.batch / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with (self.batch.parent / _LOG).open("ab") as log:
            log.write(b"\n" + msgspec.json.encode(removal))  # after a line that a crash cut off
            log.flush()
            os.fsync(log.fileno())
        (self.root / path).rename(target)

    def delete(self, path: str) -> None:
        """Delete what was moved here."""
        shutil.rmtree(self.batch / path)

    def empty(self) -> None:
        """Delete what is here from earlier."""
        for name in folders(self.batch.parent):
            if name != self.batch.name:
                shutil.rmtree(self.batch.parent / name)


@contextmanager
def opened(store: ArtifactStore) -> Iterator[Trash]:
    """Have a store's trash to oneself.

    Raises:
        StorageError: another process uses it, or it cannot be written to.
    """
    folder = store.root / TRASH_FOLDER
    with store.lock_if_free("store", "trash") as is_free, storage_errors(store.root):
        if not is_free:
            raise StorageError(f"another process moves artifacts to {folder}: wait for it")
        if folder.is_symlink():
            raise StorageError(f"{folder} is a link, which nothing is moved to: take it away")
        yield Trash(store.root, folder / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}")


def removals(root: Path) -> dict[str, Removal]:
    """The last removal of every artifact that was ever moved to the trash, by `kind/key`."""
    try:
        lines = (root / TRASH_FOLDER / _LOG).read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    found = {}
    for line in lines:
        try:
            removal = msgspec.json.decode(line, type=Removal)
        except msgspec.DecodeError:  # one that a crash cut off, or an empty one
            continue
        found[removal.reference] = removal
    return found
