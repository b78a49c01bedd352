"""Digests of files that are not the store's own, and facts about them, remembered."""

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Self

import msgspec

from data.artifacts.files import naming
from data.progress import Progress, silent

MEMORY_NAME = ".digests.sqlite"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, size INT, changed INT, sha256 TEXT);
CREATE TABLE IF NOT EXISTS facts (sha256 TEXT, name TEXT, value BLOB, PRIMARY KEY (sha256, name));
"""
_VARIABLES = 500
"""Values in one query."""

_CHUNK = 1 << 18
"""Bytes; a file that is not longer is read at once."""

_THREADS = 8
_SECONDS_BETWEEN_REPORTS = 1.0

_SETTLED_NS = 2_000_000_000
"""A file changed less than this ago may change again within its time stamp's grain: not remembered."""


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's content.

    Raises:
        OSError: it cannot be read.
    """
    with naming(path), open(path, "rb") as file:  # noqa: PTH123  # thousands of small files, by text
        start = file.read(_CHUNK)
        if len(start) < _CHUNK:
            return hashlib.sha256(start).hexdigest()
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


def combined_digest(lines: Iterable[str]) -> str:
    """SHA-256 of lines of text."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _opened(path: Path | str) -> sqlite3.Connection:
    """A database with the tables; what is none is deleted for it."""
    try:
        database = sqlite3.connect(path, timeout=30)
        database.executescript(_SCHEMA)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError:
        Path(path).unlink()
        return _opened(path)
    return database


class DigestMemory:
    """SHA-256 of files, remembered by path, size and time of change, so that each is read once.

    Args:
        folder: where the memory is kept; None, or a folder that is not there, for this object's life.
        on_progress: called about once a second while files are read.
    """

    def __init__(self, folder: Path | None = None, on_progress: Progress = silent):
        self._on_progress = on_progress
        self._path = folder / MEMORY_NAME if folder is not None and folder.is_dir() else None
        self._database = self._open()

    def _open(self) -> sqlite3.Connection:
        """A memory that cannot be written is done without: it only saves time."""
        if self._path:
            with suppress(sqlite3.Error, OSError):
                return _opened(self._path)
        return _opened(":memory:")

    def _ask(self, query: str, values: Sequence[object]) -> list[Any]:
        """The rows that are remembered; none where the memory cannot be read."""
        try:
            return self._database.execute(query, values).fetchall()
        except sqlite3.OperationalError:
            return []
        except sqlite3.DatabaseError:
            self._database.close()
            if self._path:
                with suppress(OSError):
                    self._path.unlink()
            self._database = self._open()
            return []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def save(self, folder: Path) -> None:
        """Keep in a folder what is remembered, if it has no memory yet."""
        path = folder / MEMORY_NAME
        if not path.exists():
            with suppress(sqlite3.Error), closing(sqlite3.connect(path)) as database:
                self._database.backup(database)

    def file(self, path: Path) -> str:
        """SHA-256 of a file.

        Raises:
            OSError: it cannot be read.
        """
        return self.files([path])[0]

    def files(self, paths: Sequence[Path]) -> list[str]:
        """SHA-256 of each file.

        Raises:
            OSError: one cannot be read.
        """
        names = [os.path.abspath(path) for path in paths]  # noqa: PTH100  # links stay as they are
        known = self._known(names)
        stats = [(entry.st_size, entry.st_mtime_ns) for entry in map(os.stat, names)]
        new = [row for row, name in enumerate(names) if known.get(name, ())[:2] != stats[row]]
        read = self._read([names[row] for row in new])
        settled = time.time_ns() - _SETTLED_NS
        self._remember(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)",
            [
                (os.fsencode(names[row]), *stats[row], digest)
                for row, digest in zip(new, read, strict=True)
                if stats[row][1] < settled
            ],
        )
        digests = {name: entry[2] for name, entry in known.items()}
        digests |= {names[row]: digest for row, digest in zip(new, read, strict=True)}
        return [digests[name] for name in names]

    def folder(self, folder: Path) -> str:
        """SHA-256 over the names and contents of all files in a folder but hidden ones."""
        found = (path for path in folder.rglob("*") if not path.name.startswith("."))
        paths = sorted(path for path in found if path.is_file())
        names = [str(path.relative_to(folder)) for path in paths]
        lines = zip(names, self.files(paths), strict=True)
        return combined_digest(f"{name} {digest}" for name, digest in lines)

    def fact(self, path: Path, name: str, find: Callable[[Path], list[str]]) -> list[str]:
        """What `find` says of a file's content, found once.

        Args:
            name: of the fact, changed whenever `find` is.
        """
        key = (self.file(path), name)
        for (known,) in self._ask("SELECT value FROM facts WHERE (sha256, name) = (?, ?)", key):
            return msgspec.json.decode(known, type=list[str])
        value = find(path)
        text = msgspec.json.encode(value)
        self._remember("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", [(*key, text)])
        return value

    def _known(self, names: Sequence[str]) -> dict[str, tuple[int, int, str]]:
        known = {}
        for start in range(0, len(names), _VARIABLES):
            part = [os.fsencode(name) for name in names[start : start + _VARIABLES]]
            marks = ",".join("?" * len(part))
            query = f"SELECT path, size, changed, sha256 FROM files WHERE path IN ({marks})"  # noqa: S608  # marks only
            for path, size, changed, digest in self._ask(query, part):
                known[os.fsdecode(path)] = (size, changed, digest)
        return known

    def _read(self, names: Sequence[str]) -> list[str]:
        digests: list[str] = []
        reported = time.monotonic()
        with ThreadPoolExecutor(_THREADS) as pool:
            for digest in pool.map(file_digest, names):
                digests.append(digest)
                if time.monotonic() - reported > _SECONDS_BETWEEN_REPORTS:
                    reported = time.monotonic()
                    self._on_progress(len(digests), len(names), "files read for their digests")
        return digests

    def _remember(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        with suppress(sqlite3.DatabaseError), self._database:
            self._database.executemany(statement, rows)
