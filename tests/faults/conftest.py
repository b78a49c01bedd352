"""Two harnesses: the n-th operation on the disk fails; and a run is disturbed."""

import builtins
import errno
import functools
import io
import os
import shutil
import subprocess
import sys
import threading
import time
import traceback
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from data.artifacts.inventory import artifacts
from data.artifacts.store import ArtifactStore
from data.errors import PipelineError
from tasks.catalogue import KINDS

_NEED_SPACE = {"open", "mkdir", "write", "pwrite", "sendfile"}
_OPERATIONS = (
    "fsync", "ftruncate", "mkdir", "open", "pwrite", "rename", "replace", "rmdir", "sendfile",
    "unlink", "utime",
)  # fmt: skip
_READING = ("listdir", "open", "scandir", "stat")


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
    """Counts the operations of this process that change the disk, or those that read it, and lets one fail.

    Args:
        fault: EIO: an I/O error, once. ENOSPC: the disk is full from then on. Death: a kill. Torn write: a
            kill of the machine, after which what was written and not flushed lacks its second half.
        nth: the one that fails, from 1; 0: none.
        what: is counted, `write` or `read`.
    """

    def __init__(self, fault, nth, what):
        self.count, self.struck = 0, False
        self._lock = threading.RLock()  # files are flushed in threads
        self._fault, self._nth, self._reads = fault, nth, what == "read"
        self._unflushed = {}  # inode to a descriptor of our own, which no rename changes, and bytes flushed
        for name in _READING if self._reads else _OPERATIONS:
            setattr(os, name, functools.partial(self._operate, name, getattr(os, name)))
        self._open = io.open
        io.open = builtins.open = self._open_file

    def _operate(self, name, operation, *arguments, **options):
        if name == "open" and bool(arguments[1] & os.O_CREAT) == self._reads:
            return operation(*arguments, **options)
        self.strike(name, path=arguments[0])
        if name in ("pwrite", "sendfile"):
            self.writes(arguments[0])
        result = operation(*arguments, **options)
        if name == "fsync":
            with self._lock:
                self._unflushed.pop(os.fstat(arguments[0]).st_ino, None)
        return result

    def _open_file(self, file, mode="r", buffering=-1, encoding=None, errors=None, newline=None):
        if bool(set(mode) & set("wax")) == self._reads:
            return self._open(file, mode, buffering, encoding, errors, newline)
        self.strike("open", path=file)
        raw = _File(self, file, mode.strip("bt"))
        buffered = io.BufferedReader(raw) if self._reads else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    def strike(self, name, path=None, half=None):
        """Count an operation; let it fail if it is its turn.

        Args:
            path: what it is done to, for the error; a number is none.
            half: does half of a write.
        """
        with self._lock:
            self.count += 1
            is_full = (
                self._fault == "ENOSPC" and name in _NEED_SPACE and 0 < self._nth <= self.count
            )
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
    """A file whose writes, or reads, are counted."""

    def __init__(self, disk, *arguments):
        super().__init__(*arguments)
        self._disk = disk

    def write(self, content):
        half = functools.partial(super().write, memoryview(content)[: len(content) // 2])
        self._disk.strike("write", half=half)
        self._disk.writes(self.fileno())
        return super().write(content)

    def readinto(self, buffer):
        self._disk.strike("read")
        return super().readinto(buffer)

    def readall(self):
        self._disk.strike("read")
        return super().readall()


@pytest.fixture(scope="session")
def attempt():
    """Calls a function in a process of its own, whose n-th operation on the disk fails."""

    def attempt(function, fault="EIO", nth=0, what="write"):
        child = os.fork()
        if not child:
            status = Outcome.BROKE
            try:
                disk = _Disk(fault, nth, what)
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


class Place:
    """A root, a folder to start runs in, and Prefect's own.

    Attributes:
        services: processes that are not of a run, although they work on the root.
    """

    def __init__(self, folder, root=None):
        self.folder, self.root = folder, root or folder / "root"
        self.services = []
        for name in ("prefect", "cwd"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def start(self, *arguments, **variables):
        """Start a command in this place, by default a run of smoke."""
        script = "from flows.command_line import main; main()"
        return self.python("-c", script, *(arguments or ("run", "smoke")), **variables)

    def python(self, *arguments, **variables):
        """Start Python in this place."""
        environment = os.environ | {
            "DETDIFFUSION_HOME": str(self.root),
            "PREFECT_HOME": str(self.folder / "prefect"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        environment.pop("PREFECT_API_URL", None)
        with (self.folder / "prefect" / "output.txt").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, *arguments],
                cwd=self.folder / "cwd",
                env=environment | variables,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self):
        return (self.folder / "prefect" / "output.txt").read_text()

    def processes(self):
        """Those that work on this root, less the services."""
        found, services = [], {item.pid for item in self.services}
        for process in psutil.process_iter():
            try:
                mine = process.environ().get("DETDIFFUSION_HOME") == str(self.root)
            except psutil.Error:
                continue
            if mine and process.pid not in services:
                found.append(process)
        return found

    def named(self, text):
        """Those whose command has a word that begins so."""
        found = []
        for process in self.processes():
            try:
                if any(word.startswith(text) for word in process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def kill(self, process):
        """Kill a run's first process; ends Prefect's temporary server, which outlives it."""
        servers = self.named("uvicorn")
        process.kill()
        process.wait()
        for item in servers:
            item.terminate()

    @staticmethod
    def wait_until(process, is_time, seconds=0.5):
        """Let a process go on until it is time, looked at every so many seconds, or it has ended."""
        while process.poll() is None and not is_time():
            time.sleep(seconds)

    def wait_for_end(self, seconds=120):
        """No process is left, soon after."""
        deadline = time.monotonic() + seconds
        while self.processes():
            assert time.monotonic() < deadline, self.processes()
            time.sleep(0.5)

    def made(self):
        """Intact artifacts by reference."""
        store = ArtifactStore(self.root)
        found = (store.lookup(*name.split("/")) for name in artifacts(self.root))
        return {manifest.reference: manifest for manifest in found if manifest}

    def digests(self):
        """Of every file, but of those that tell the time."""
        return {
            f"{reference}/{name}": record.sha256
            for reference, manifest in self.made().items()
            for name, record in manifest.files.items()
            if name not in KINDS[manifest.kind].timed
        }


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """The place of an undisturbed run; FAULT_REFERENCE names a folder in which it is kept."""
    kept = os.environ.get("FAULT_REFERENCE")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("reference") / "place"
    if (folder / "root" / "report").is_dir():
        return Place(folder)
    place = Place(folder)
    assert place.start().wait() == 0, place.output
    return place


@pytest.fixture
def empty_place(tmp_path):
    """A place in which nothing was made."""
    return Place(tmp_path / "place")


@pytest.fixture
def new_place(reference, tmp_path):
    """Makes a place with a copy of the undisturbed run without some kinds' artifacts."""

    def create(*without, root=None):
        place = Place(tmp_path / "place", root)
        leave_out = shutil.ignore_patterns(".work", *without)
        shutil.copytree(reference.root, place.root, ignore=leave_out, dirs_exist_ok=True)
        return place

    return create


@pytest.fixture
def ends_the_same(reference):
    """Runs again, and compares with the undisturbed run."""

    def check(place):
        place.wait_for_end()
        before = place.made()
        assert place.start().wait() == 0, place.output
        place.wait_for_end()
        assert place.digests() == reference.digests()
        after = place.made()
        assert after == after | before  # made_at and all
        assert not list((place.folder / "cwd").iterdir())
        assert {path.name for path in place.folder.iterdir()} <= {"root", "prefect", "cwd"}

    return check
