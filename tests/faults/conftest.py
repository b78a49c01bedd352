"""One harness for faults of the disk: the n-th operation of a process that changes it fails."""

import builtins
import errno
import functools
import io
import os
import sys
import traceback
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace

import pytest

from data.errors import PipelineError

_NEED_SPACE = {"open", "mkdir", "write", "pwrite", "sendfile"}
_OPERATIONS = (
    "fsync", "ftruncate", "mkdir", "open", "pwrite", "rename", "replace", "rmdir", "sendfile",
    "unlink", "utime",
)  # fmt: skip


class Outcome(IntEnum):
    """How an attempt ended; the exit status of its process."""

    UNTOUCHED = 0
    """It has fewer operations: no fault."""
    UNIMPRESSED = 3
    REFUSED = 4
    """With an error of ours."""
    BROKE = 5
    DIED = 9


class _Disk:
    """Counts the operations of this process that change the disk, and lets one fail.

    Args:
        fault: EIO: an I/O error, once. ENOSPC: the disk is full from then on. Death: a kill. Torn write: a
            kill of the machine, after which what was written and not flushed lacks its second half.
        nth: the one that fails, from 1; 0: none.
    """

    def __init__(self, fault, nth):
        self.count, self.struck = 0, False
        self._fault, self._nth = fault, nth
        self._unflushed = {}  # inode to a descriptor of our own, which no rename changes, and bytes flushed
        for name in _OPERATIONS:
            setattr(os, name, functools.partial(self._operate, name, getattr(os, name)))
        self._open = io.open
        io.open = builtins.open = self._open_file

    def _operate(self, name, operation, *arguments, **options):
        if name == "open" and not arguments[1] & os.O_CREAT:
            return operation(*arguments, **options)
        self.strike(name, path=arguments[0])
        if name in ("pwrite", "sendfile"):
            self.writes(arguments[0])
        result = operation(*arguments, **options)
        if name == "fsync":
            self._unflushed.pop(os.fstat(arguments[0]).st_ino, None)
        return result

    def _open_file(self, file, mode="r", buffering=-1, encoding=None, errors=None, newline=None):
        if not set(mode) & set("wax"):
            return self._open(file, mode, buffering, encoding, errors, newline)
        self.strike("open", path=file)
        buffered = io.BufferedWriter(_File(self, file, mode.strip("bt")))
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    def strike(self, name, path=None, half=None):
        """Count an operation; let it fail if it is its turn.

        Args:
            path: what it is done to, for the error; a number is none.
            half: does half of a write.
        """
        self.count += 1
        is_full = self._fault == "ENOSPC" and name in _NEED_SPACE and 0 < self._nth <= self.count
        if self.count != self._nth and not is_full:
            return
        self.struck = True
        match self._fault:
            case "EIO" | "ENOSPC":
                if is_full or self._fault == "EIO":
                    number = getattr(errno, self._fault)
                    name = None if isinstance(path, int) else path
                    raise OSError(number, os.strerror(number), name)
            case "death":
                os._exit(Outcome.DIED)
            case "torn write":
                if half:
                    half()
                for descriptor, flushed in self._unflushed.values():
                    os.truncate(descriptor, (flushed + os.fstat(descriptor).st_size) // 2)
                os._exit(Outcome.DIED)

    def writes(self, descriptor):
        """Remember how much of a file is on the disk before it is written to."""
        status = os.fstat(descriptor)
        if status.st_ino not in self._unflushed:
            self._unflushed[status.st_ino] = os.dup(descriptor), status.st_size


class _File(io.FileIO):
    """A file whose writes are counted."""

    def __init__(self, disk, *arguments):
        super().__init__(*arguments)
        self._disk = disk

    def write(self, content):
        half = functools.partial(super().write, memoryview(content)[: len(content) // 2])
        self._disk.strike("write", half=half)
        self._disk.writes(self.fileno())
        return super().write(content)


@pytest.fixture(scope="session")
def attempt():
    """Calls a function in a process of its own, whose n-th operation on the disk fails."""

    def attempt(function, fault="EIO", nth=0):
        child = os.fork()
        if not child:
            status = Outcome.BROKE
            try:
                disk = _Disk(fault, nth)
                function()
                status = Outcome.UNIMPRESSED if disk.struck else Outcome.UNTOUCHED
            except PipelineError:
                status = Outcome.REFUSED
            except BaseException:  # noqa: BLE001  # the exit status tells
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        return Outcome(os.waitstatus_to_exitcode(status))

    return attempt


@pytest.fixture(scope="session")
def contents():
    """Tells all that is in a folder: path to content."""

    def contents(folder: Path):
        return {
            str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
            for path in folder.rglob("*")
        }

    return contents


PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"


@pytest.fixture(scope="session")
def noted():
    """Notes a fault that was survived with equal bytes; FAULT_REPORT=write puts it into the page's table."""
    found = {}

    def noted(fault, moments, seconds, start="–"):
        row = found.setdefault(fault, SimpleNamespace(moments=0, seconds=0.0, start=start))
        row.moments += moments
        row.seconds += seconds

    yield noted
    if os.environ.get("FAULT_REPORT") == "write":
        lines = PAGE.read_text().splitlines()
        head, *old = [line for line in lines if line.startswith("|")]
        rows = {line.split(" | ")[0].strip("| "): line for line in old[1:]}
        for fault, row in found.items():
            cells = fault, row.start, row.moments, row.moments, "yes", f"{row.seconds / 60:.1f}"
            rows[fault] = f"| {' | '.join(map(str, cells))} |"
        table = [head, old[0], *rows.values()]
        first = lines.index(head)
        lines[first : first + len(old) + 1] = table
        PAGE.write_text("\n".join(lines) + "\n")
