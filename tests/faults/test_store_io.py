"""Every operation of the store on the disk fails once, in every way; what then is true, and after a rerun."""

import itertools
import os
import shutil
import time
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from data.artifacts.files import durable_file, storage_errors
from data.artifacts.garbage import collect, garbage
from data.artifacts.identity import StepIdentity
from data.artifacts.inventory import artifacts, unfinished
from data.artifacts.records import RecordedStep, read_records, write_record
from data.artifacts.roots import Keep, pin, pinned, unpin
from data.artifacts.store import ArtifactStore
from data.artifacts.trash import removals
from data.artifacts.verification import damaged_files, remove_damaged

pytestmark = pytest.mark.timeout(3600)

FAULTS = ("EIO", "ENOSPC", "death", "torn write")
KEEP = Keep(runs=1, grace=timedelta(0))


def identity(name, *inputs):
    sources = {f"input {i}": reference for i, reference in enumerate(inputs)}
    return StepIdentity("kind", {}, {"name": name}, {}, sources)


BASE, USED = identity("base"), identity("used", identity("base").reference)
NEW, LOOSE = identity("new", BASE.reference), [identity(f"loose {i}") for i in range(2)]


def make(root, who, of=None):
    """What a run does for a step: a hit, or a lock, files and a log in the work folder, and a publication.

    Args:
        of: stands in the files.
    """
    store = ArtifactStore(root)
    if store.lookup(who.kind, who.key):
        return
    with storage_errors(root), store.lock(who.kind, who.key):
        work = store.work(who.kind, who.key)
        out = work / "out"
        (out / "sub").mkdir(parents=True, exist_ok=True)
        (work / "log.txt").write_text("a log")
        for path in (out / "first", out / "sub" / "second"):
            path.write_text(f"{path.name} of {of or who.options['name']}")
        store.publish(
            who, out, summary={}, environment={}, seconds=1.0, peak_memory_bytes=1,
            created_at="2026-01-01T00:00:00+00:00",
        )  # fmt: skip


def write_run(root):
    step = RecordedStep(names=("used",), stages=("s",), kind="kind", key=USED.key)
    write_record(root, "run", "smoke", {}, (step,))


@pytest.fixture(scope="module")
def memory():
    """A folder in memory, if there can be: faults are of our making, real flushes take most of the time."""
    folder = "/dev/shm"  # noqa: S108  # a folder of a random name is made there
    with TemporaryDirectory(dir=folder if os.access(folder, os.W_OK) else None) as name:
        yield Path(name)


@pytest.fixture
def tmp_path(memory):
    with TemporaryDirectory(dir=memory) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def template(memory):
    """A store with a run, two artifacts that it needs, two that nothing does, and one in the trash."""
    root = memory / "template"
    for who in (BASE, USED, *LOOSE, identity("long gone")):
        make(root, who)
    write_run(root)
    store = ArtifactStore(root)
    gone = [item for item in garbage(store, KEEP) if item.path == identity("long gone").reference]
    collect(store, KEEP, gone)
    shutil.rmtree(root / ".locks")  # which would be most of what gc writes
    return root


class Operation:
    """One way to change a store.

    Attributes:
        what: it belongs to, for the page.
        may_change: artifacts that it is there to make or to remove.
    """

    what = "publish, records, pins"
    may_change = ()

    def prepare(self, root):
        """Bring the store into the state that it begins with."""

    def run(self, root):
        """Do it; again after a fault."""

    def check(self, root):
        """What is true even after a fault."""

    def check_done(self, root):
        """What is true when it has been done."""


class Publish(Operation):
    may_change = (NEW,)

    def run(self, root):
        make(root, NEW)

    def check(self, root):
        manifest = ArtifactStore(root).lookup("kind", NEW.key)
        assert manifest is None or manifest.files.keys() == {"first", "sub/second"}

    def check_done(self, root):
        assert ArtifactStore(root).lookup("kind", NEW.key)
        assert (root / NEW.reference / "sub" / "second").read_text() == "second of new"
        assert (root / NEW.reference / "log.txt").is_file()


class PublishOverDamage(Publish):
    def prepare(self, root):
        make(root, NEW)
        (root / NEW.reference / "first").write_text("cut")


class Hit(Operation):
    def run(self, root):
        make(root, USED, "something that is not always the same")


class OverwriteFile(Operation):
    def prepare(self, root):
        (root / "note.json").write_text("old")

    def run(self, root):
        with storage_errors(root), durable_file(root / "note.json") as file:
            file.write(b"new content")

    def check(self, root):
        assert (root / "note.json").read_text() in {"old", "new content"}

    def check_done(self, root):
        assert (root / "note.json").read_text() == "new content"


class WriteRecord(Operation):
    def run(self, root):
        write_run(root)

    def check_done(self, root):
        assert len(list(read_records(root))) >= 2


class Pin(Operation):
    def run(self, root):
        pin(root, LOOSE[0].reference)

    def check(self, root):
        assert pinned(root) <= {LOOSE[0].reference}

    def check_done(self, root):
        assert pinned(root) == {LOOSE[0].reference}


class Unpin(Pin):
    def prepare(self, root):
        pin(root, LOOSE[0].reference)

    def run(self, root):
        unpin(root, LOOSE[0].reference)

    def check_done(self, root):
        assert not pinned(root)


class Collect(Operation):
    what = "gc, verify"
    may_change = LOOSE

    def prepare(self, root):
        work = ArtifactStore(root).work("kind", LOOSE[1].key)
        (work / "checkpoint").write_text("work")
        for path in (work / "checkpoint", work):
            os.utime(path, (0, 0))

    def run(self, root):
        store = ArtifactStore(root)
        collect(store, KEEP, garbage(store, KEEP))

    def check_done(self, root):
        assert set(artifacts(root)) == {BASE.reference, USED.reference}
        assert not unfinished(root)
        assert {item.reference for item in LOOSE} <= removals(root).keys()
        self.run(root)
        assert not list((root / ".trash").rglob("first"))


class CollectBesidePin(Collect):
    may_change = LOOSE[1:]

    def prepare(self, root):
        super().prepare(root)
        pin(root, LOOSE[0].reference)

    def check_done(self, root):
        assert set(artifacts(root)) == {BASE.reference, USED.reference, LOOSE[0].reference}


class Repair(Operation):
    what = "gc, verify"
    may_change = LOOSE

    def prepare(self, root):
        for who in LOOSE:
            (root / who.reference / "manifest.json").write_text("{")

    def run(self, root):
        store = ArtifactStore(root)
        there = artifacts(root)
        remove_damaged(store, [item for item in there if damaged_files(store, item)])

    def check_done(self, root):
        assert set(artifacts(root)) == {BASE.reference, USED.reference}
        assert {item.reference for item in LOOSE} <= removals(root).keys()


def cases():
    """Each operation with each fault; the ordinary suite leaves out what takes long and differs little.

    A publication on a full disk is refused where one that meets an I/O error is.
    """
    operations = (
        Publish(), PublishOverDamage(), OverwriteFile(), WriteRecord(), Pin(), Unpin(), Collect(), Repair(),
    )  # fmt: skip
    for operation, fault in itertools.product(operations, FAULTS):
        name = type(operation).__name__
        takes_long = name in {"PublishOverDamage", "Collect", "Repair"}
        is_left_out = takes_long or (name, fault) == ("Publish", "ENOSPC")
        marks = [pytest.mark.faults] * is_left_out
        yield pytest.param(operation, fault, marks=marks, id=f"{name}-{fault}")


@pytest.fixture
def survived(attempt, contents, template, tmp_path, noted):
    """Does an operation with the first, the second, … of what can fail failing, and then again."""

    def survived(operation, fault, what):
        started, ends = time.monotonic(), []
        store = ArtifactStore(template)
        needed = {
            who.reference: store.lookup(who.kind, who.key)
            for who in (BASE, USED, *LOOSE)
            if who not in operation.may_change
        }
        (tmp_path / "neighbour").write_text("not ours")
        for nth in itertools.count(1):
            root = tmp_path / "root"
            shutil.copytree(template, root)
            operation.prepare(root)
            outcome = attempt(lambda root=root: operation.run(root), fault, nth, what)
            assert outcome.name != "BROKE", nth
            self_check(root, needed)
            operation.check(root)
            assert attempt(lambda root=root: operation.run(root)).name == "UNTOUCHED"
            self_check(root, needed)
            operation.check_done(root)
            ends.append(contents(root / "kind"))
            shutil.rmtree(root)
            assert contents(tmp_path) == {"neighbour": b"not ours"}
            if outcome.name == "UNTOUCHED":
                break
        assert nth > 1
        assert not [end for end in ends if end != ends[-1]]
        noted(
            f"{operation.what}: {fault} at the n-th {what}",
            nth - 1,
            time.monotonic() - started,
        )

    return survived


@pytest.mark.parametrize(("operation", "fault"), list(cases()))
def test_every_operation_on_the_disk_may_fail(survived, operation, fault):
    survived(operation, fault, "write")


@pytest.mark.faults
@pytest.mark.parametrize(
    "operation",
    [Publish(), PublishOverDamage(), Hit(), WriteRecord(), Collect(), CollectBesidePin(), Repair()],
    ids=lambda case: type(case).__name__,
)
def test_every_read_of_the_disk_may_fail(survived, operation):
    survived(operation, "EIO", "read")


def self_check(root, needed):
    """What was finished is intact, and the records can be read."""
    store = ArtifactStore(root)
    assert {name: store.lookup(*name.split("/")) for name in needed} == needed
    assert list(read_records(root))
