"""Every operation on the mirror may fail, or be done and not be answered, or be the last of its process."""

import itertools
import time
from datetime import timedelta

import pytest

from data.artifacts import bucket as bucket_module
from data.artifacts import remote as remote_module
from data.artifacts import remote_contents
from data.artifacts.bucket import Bucket
from data.artifacts.identity import StepIdentity
from data.artifacts.records import RecordedStep, write_record
from data.artifacts.remote import Remote
from data.artifacts.remote_contents import RemoteContents
from data.artifacts.roots import Keep
from data.artifacts.store import ArtifactStore
from data.errors import ServiceUnavailable

KEEP = Keep(runs=1, grace=timedelta(0))
OPERATIONS = ("read", "parts", "listed", "folders", "put", "creates", "delete")
FAULTS = ("is refused", "is done and not answered", "is the last of its process")


class Death(BaseException):
    """Of the process: nobody goes on after it."""


class Failing(Bucket):
    """Objects of which the n-th operation fails; 0: none does."""

    def __init__(self, url, fault="is refused", nth=0):
        super().__init__(url)
        self._fault, self._left, self.has_failed = fault, nth, False

    def _called(self, name, *arguments):
        self._left -= 1
        if self._left:
            return getattr(Bucket, name)(self, *arguments)
        self.has_failed = True
        if self._fault == "is refused":
            raise ServiceUnavailable("refused")
        done = getattr(Bucket, name)(self, *arguments)
        if name == "parts":
            list(itertools.islice(done, 1))
        raise (
            ServiceUnavailable("no answer") if self._fault == "is done and not answered" else Death
        )


for name in OPERATIONS:
    setattr(Failing, name, lambda self, *given, name=name: self._called(name, *given))


def remote_of(root, fault="is refused", nth=0):
    remote = Remote((root / "mirror").as_uri())
    remote.bucket = Failing(remote.url, fault, nth)
    return remote


def made(root, name, *inputs):
    """An artifact of a machine's store, the same whenever it is made."""
    sources = {f"input {i}": item.reference for i, item in enumerate(inputs)}
    store = ArtifactStore(root / "one")
    identity = StepIdentity("kind", {}, {"name": name}, {}, sources)
    if manifest := store.read(identity.kind, identity.key):
        return manifest
    out = store.work(identity.kind, identity.key) / "out"
    out.mkdir()
    for file in ("first", "second"):
        (out / file).write_text(f"{file} of {name}")
    return store.publish(
        identity, out, summary={}, environment={}, seconds=1.0, peak_memory_bytes=1,
        created_at="2026-01-01T00:00:00+00:00",
    )  # fmt: skip


def record(root, *manifests):
    steps = tuple(
        RecordedStep(names=("s",), stages=("s",), kind="kind", key=item.key) for item in manifests
    )
    return write_record(root / "one", "run", "demo", {}, steps).id


def objects(root):
    """Of artifacts and the trash, by their names."""
    found = (path for path in (root / "mirror").rglob("*") if path.is_file())
    names = {str(path.relative_to(root / "mirror")): path.read_bytes() for path in found}
    return {name: names[name] for name in names if name.startswith(("kind/", ".trash/"))}


class Push:
    def prepare(self, root):
        remote_of(root).push_record(root / "one", record(root, made(root, "a")))

    def run(self, remote, root):
        remote.push(ArtifactStore(root / "one"), made(root, "a"))


class PushOverTrash(Push):
    def prepare(self, root):
        super().prepare(root)
        remote = remote_of(root)
        remote.push_record(root / "one", record(root))
        remote.push(ArtifactStore(root / "one"), made(root, "a"))
        contents = RemoteContents(remote)
        contents.collect(KEEP, contents.garbage(KEEP))


class Pull(Push):
    def prepare(self, root):
        super().prepare(root)
        remote_of(root).push(ArtifactStore(root / "one"), made(root, "a"))

    def run(self, remote, root):
        manifest = made(root, "a")
        assert remote.pull(ArtifactStore(root / "two"), "kind", manifest.key) == manifest


class Collect:
    """Of four artifacts one is kept and one is what it is made from; one lies in the trash."""

    def prepare(self, root):
        remote, store = remote_of(root), ArtifactStore(root / "one")
        base = made(root, "base")
        used, loose, trashed = (
            made(root, "used", base), made(root, "loose"), made(root, "trashed"),
        )  # fmt: skip
        remote.push_record(store.root, record(root, loose, used))
        for manifest in (base, used, loose, trashed):
            remote.push(store, manifest)
        contents = RemoteContents(remote)
        contents.collect(KEEP, contents.garbage(KEEP))
        remote.push_record(store.root, record(root, used))

    def run(self, remote, root):
        contents = RemoteContents(remote)
        contents.collect(KEEP, contents.garbage(KEEP))
        contents = RemoteContents(remote)
        contents.collect(KEEP, [])  # what the first has moved


class Repair(Pull):
    def prepare(self, root):
        super().prepare(root)
        next((root / "mirror" / "kind").glob("*/*/second")).write_text("SECOND OF A")

    def run(self, remote, root):
        contents = RemoteContents(remote)
        contents.repair([item for item in contents.artifacts if contents.damage(item)])
        remote.push(ArtifactStore(root / "one"), made(root, "a"))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "operation",
    [
        Push(),
        PushOverTrash(),
        Pull(),
        pytest.param(Collect(), marks=pytest.mark.faults),
        pytest.param(Repair(), marks=pytest.mark.faults),
    ],
    ids=lambda case: type(case).__name__,
)
def test_every_operation_on_the_mirror_may_fail(tmp_path, noted, monkeypatch, operation, fault):
    started = time.monotonic()
    monkeypatch.setattr(bucket_module, "_PAUSES", (0.0, 0.0, 0.0))
    for module in (remote_module, remote_contents):
        monkeypatch.setattr(module, "_THREADS", 1)
    undisturbed = None
    for nth in itertools.count():
        root = tmp_path / str(nth)
        (root / "mirror").mkdir(parents=True)
        operation.prepare(root)
        remote = remote_of(root, fault, nth)
        try:
            operation.run(remote, root)
        except (ServiceUnavailable, Death):
            assert remote.bucket.has_failed
        there = RemoteContents(remote_of(root))
        states = {item.reference: item.state for item in there.found()}
        if not isinstance(operation, Repair):
            assert "damaged" not in states.values(), nth
        operation.run(remote_of(root), root)
        if undisturbed is None:
            undisturbed = objects(root)
        assert objects(root) == undisturbed, nth
        assert not list((root / "two" / ".work").rglob("first"))
        if nth and not remote.bucket.has_failed:
            break
    assert nth > 3
    noted(
        f"push, pull, gc, verify on the mirror: the n-th operation {fault}",
        nth - 1,
        time.monotonic() - started,
    )
