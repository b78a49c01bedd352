"""What is looked at, and collected, on a mirror: in a folder, whose files can be made old, and on S3."""

import os
import shutil
import time
import uuid
from datetime import timedelta

import pytest

from data.artifacts.identity import StepIdentity
from data.artifacts.records import RecordedStep, write_record
from data.artifacts.remote import Remote
from data.artifacts.remote_contents import RemoteContents
from data.artifacts.roots import Keep
from data.artifacts.store import ArtifactStore
from data.errors import ArtifactMissing, InvalidRecord, RemoteDamaged

NOW = Keep(runs=1, grace=timedelta(0))


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "store")


@pytest.fixture
def mirror(store, tmp_path):
    """A mirror on which one run is recorded, of nothing."""
    (tmp_path / "mirror").mkdir()
    mirror = Remote((tmp_path / "mirror").as_uri())
    record(store, mirror, name="empty")
    return mirror


@pytest.fixture
def push(store, mirror, publish):
    """Makes an artifact and pushes it: its manifest."""

    def push(value, *inputs, content="content"):
        sources = {f"input {i}": item.reference for i, item in enumerate(inputs)}
        identity = StepIdentity("kind", {}, {"value": value}, {}, sources)
        manifest = publish(store, identity, content=content)
        mirror.push(store, manifest)
        return manifest

    return push


def record(store, mirror, *manifests, name="demo"):
    steps = tuple(
        RecordedStep(names=("step",), stages=("s",), kind=item.kind, key=item.key)
        for item in manifests
    )
    run = write_record(store.root, "run", name, {}, steps)
    mirror.push_record(store.root, run.id)
    return run.id


def files(tmp_path):
    """All objects but the probe, by their names."""
    root = tmp_path / "mirror"
    found = (path for path in root.rglob("*") if path.is_file() and path.name != ".probe")
    return {str(path.relative_to(root)): path for path in found}


def grow_old(tmp_path, hours=100):
    when = time.time() - 3600 * hours
    for path in files(tmp_path).values():
        os.utime(path, (when, when))


def states(mirror):
    return {item.reference: item.state for item in RemoteContents(mirror).found()}


def gc(mirror, keep=NOW):
    contents = RemoteContents(mirror)
    return [item.reference for item in contents.collect(keep, contents.garbage(keep))]


def test_what_is_there_and_how_it_is(store, mirror, push, tmp_path):
    whole, cut, begun = push("whole"), push("cut"), push("begun")
    next((tmp_path / "mirror" / cut.reference).glob("*/file")).write_text("c")
    (tmp_path / "mirror" / begun.reference / "manifest.json").unlink()
    (tmp_path / "mirror" / "notes").mkdir()
    (tmp_path / "mirror" / "notes" / "of somebody").write_text("else")
    assert states(mirror) == {
        whole.reference: "ok",
        cut.reference: "damaged",
        begun.reference: "unfinished",
    }
    contents = RemoteContents(mirror)
    assert contents.artifacts == sorted([whole.reference, cut.reference])
    assert contents.references == {whole.reference, cut.reference, begun.reference}
    (size,) = {item.bytes for item in contents.found() if item.reference == whole.reference}
    assert size == len("content")
    assert contents.read(whole.reference) == whole
    assert contents.read(begun.reference) is None


def test_damage_is_found_by_content_and_the_next_push_mends_it(store, mirror, push, tmp_path):
    manifest, other = push("damaged"), push("whole")
    file = next((tmp_path / "mirror" / manifest.reference).glob("*/file"))
    file.write_text("CONTENT")
    contents = RemoteContents(mirror)
    assert contents.damage(manifest.reference, fast=True) == []
    assert contents.damage(manifest.reference) == ["file"]
    assert contents.damage(other.reference) == []
    assert not mirror.push(store, manifest)  # as all sizes are right
    assert contents.repair([manifest.reference, other.reference]) == [manifest.reference]
    assert mirror.has([manifest.reference]) == set()
    assert not file.exists()
    assert mirror.push(store, manifest)
    assert file.read_text() == "content"
    assert contents.damage(manifest.reference) == []
    assert contents.repair([manifest.reference]) == []  # somebody has pushed it meanwhile


def test_what_is_gone_meanwhile_is_neither_damaged_nor_kept(mirror, push, tmp_path):
    gone, half = push("gone"), push("half gone")
    contents = RemoteContents(mirror)
    (tmp_path / "mirror" / gone.reference / "manifest.json").unlink()
    next((tmp_path / "mirror" / half.reference).glob("*/file")).unlink()
    assert contents.damage(gone.reference) == []
    assert contents.damage(half.reference) == ["file"]
    assert contents.garbage(Keep()) == []


def test_a_place_without_a_run_is_left_alone(tmp_path):
    (tmp_path / "mirror").mkdir()
    with pytest.raises(ArtifactMissing, match="no run is recorded on file"):
        RemoteContents(Remote((tmp_path / "mirror").as_uri()))


def test_a_store_is_backed_up_by_what_is_kept_and_the_same(store, mirror, push, publish, tmp_path):
    same, other, unused, loose = push("same"), push("other"), push("unused"), push("loose")
    cut = push("cut")
    next((tmp_path / "mirror" / cut.reference).glob("*/file")).write_text("c")
    run = record(store, mirror, same, other, cut)
    assert run in mirror.record_ids()
    shutil.rmtree(store.root / other.reference)
    publish(store, other.identity, content="made again, otherwise")
    shutil.rmtree(store.root / loose.reference)
    grow_old(tmp_path)
    assert unused.reference in RemoteContents(mirror).artifacts
    assert RemoteContents(mirror).backs_up(store, NOW) == {same.reference}
    young = push("young")
    assert young.reference in RemoteContents(mirror).kept(Keep())
    assert RemoteContents(mirror).backs_up(store, Keep(runs=1)) == {same.reference}


def test_a_manifest_that_cannot_be_read_stops_a_collection_until_it_is_repaired(
    store, mirror, push, tmp_path
):
    unused, manifest = push("unused"), push("damaged")
    (tmp_path / "mirror" / manifest.reference / "manifest.json").write_text("{")
    before = files(tmp_path)
    with pytest.raises(RemoteDamaged, match="nobody knows what it needs"):
        gc(mirror)
    assert files(tmp_path) == before
    contents = RemoteContents(mirror)
    assert contents.damage(manifest.reference) == ["manifest.json"]
    contents.repair([manifest.reference])
    assert mirror.push(store, manifest)
    assert states(mirror) == {unused.reference: "ok", manifest.reference: "ok"}
    assert len(files(tmp_path)) == len(before) + 1
    gc(mirror)
    gc(mirror)
    assert not any(name.startswith((".trash", "kind")) for name in files(tmp_path))


def test_a_manifest_whose_inputs_are_not_those_of_its_key_is_damaged(mirror, push, tmp_path):
    base = push("base")
    manifest = push("child", base)
    path = tmp_path / "mirror" / manifest.reference / "manifest.json"
    path.write_text(path.read_text().replace(base.key, f"{int(base.key, 16) ^ 1:032x}"))
    assert RemoteContents(mirror).damage(manifest.reference) == ["manifest.json"]


def test_runs_pins_age_and_inputs_keep(store, mirror, push, tmp_path):
    base, used, pinned, loose = push("base"), push("used"), push("pinned"), push("loose")
    child = push("child", base)
    replaced = push("replaced")
    record(store, mirror, replaced)
    record(store, mirror, used, child)
    RemoteContents(mirror).pin(pinned.reference)
    everything = {item.reference for item in (base, used, pinned, loose, child, replaced)}
    assert set(RemoteContents(mirror).kept(Keep(runs=1))) == everything  # all are young
    grow_old(tmp_path)
    kept = RemoteContents(mirror).kept(NOW)
    assert set(kept) == everything - {loose.reference, replaced.reference}
    assert kept[pinned.reference] == "pinned"
    assert kept[base.reference] == f"{child.reference} is made from it"
    RemoteContents(mirror).unpin(pinned.reference)
    assert len(RemoteContents(mirror).garbage(NOW, free=1)) == 1
    assert set(gc(mirror)) == {loose.reference, replaced.reference, pinned.reference}


def test_a_run_that_died_does_not_displace_a_finished_one(store, mirror, push, publish, tmp_path):
    finished, other = push("finished"), push("other")
    missing = publish(store, StepIdentity("kind", {}, {"value": "not pushed"}, {}, {}))
    record(store, mirror, finished)
    record(store, mirror, other, missing)
    grow_old(tmp_path)
    assert gc(mirror) == []


def test_what_is_collected_is_gone_at_once_and_its_files_after_the_grace(
    store, mirror, push, tmp_path
):
    manifest, kept = push("unused"), push("used")
    record(store, mirror, kept)
    day = Keep(runs=1)
    assert gc(mirror, day) == []
    grow_old(tmp_path)
    assert gc(mirror, day) == [manifest.reference]
    assert mirror.has([manifest.reference]) == set()
    assert states(mirror) == {kept.reference: "ok"}
    assert RemoteContents(mirror).earlier(day) == []
    assert gc(mirror, day) == []
    assert any(name.endswith("/file") and manifest.reference in name for name in files(tmp_path))
    grow_old(tmp_path)
    (left,) = RemoteContents(mirror).earlier(day)
    assert left.bytes == len("content")
    gc(mirror, day)
    assert not any(manifest.reference in name for name in files(tmp_path))
    assert mirror.push(store, manifest)
    assert states(mirror) == {kept.reference: "ok", manifest.reference: "ok"}


def test_what_is_pushed_again_before_its_files_are_deleted_stays(store, mirror, push, tmp_path):
    manifest = push("again")
    gc(mirror)
    grow_old(tmp_path)
    contents = RemoteContents(mirror)
    assert len(contents.earlier(NOW)) == 1
    mirror.push(store, manifest)
    contents.collect(NOW, [])  # which had found it before
    assert states(mirror) == {manifest.reference: "ok"}
    assert mirror.pull(ArtifactStore(tmp_path / "two"), "kind", manifest.key) == manifest


def test_a_manifest_that_is_taken_out_of_the_trash_keeps_its_files(mirror, push, tmp_path):
    manifest = push("taken back")
    gc(mirror)
    grow_old(tmp_path)
    contents = RemoteContents(mirror)
    assert len(contents.earlier(NOW)) == 1
    (trashed,) = (tmp_path / "mirror" / ".trash" / manifest.reference).iterdir()
    trashed.rename(tmp_path / "mirror" / manifest.reference / "manifest.json")
    contents.collect(NOW, [])
    assert states(mirror) == {manifest.reference: "ok"}


def test_a_pull_that_had_begun_is_not_cut_off(store, mirror, push, tmp_path):
    manifest = push("pulled")
    read = mirror.bucket.read

    def read_and_collect(name):
        text = read(name)
        mirror.bucket.read = read
        gc(mirror)
        return text

    mirror.bucket.read = read_and_collect
    assert mirror.pull(ArtifactStore(tmp_path / "two"), "kind", manifest.key) == manifest
    assert states(mirror) == {}


def test_a_push_that_was_given_up_goes_after_the_grace_and_one_that_goes_on_stays(
    store, mirror, push, tmp_path
):
    manifest = push("begun")
    (tmp_path / "mirror" / manifest.reference / "manifest.json").unlink()
    assert RemoteContents(mirror).earlier(Keep()) == []
    grow_old(tmp_path)
    contents = RemoteContents(mirror)
    assert len(contents.earlier(Keep())) == 1
    file = next((tmp_path / "mirror" / manifest.reference).glob("*/file"))
    os.utime(file)  # somebody has put it again
    contents.collect(Keep(), [])
    assert file.exists()
    grow_old(tmp_path)
    RemoteContents(mirror).collect(Keep(), [])
    assert not file.exists()


def test_what_has_come_to_be_needed_meanwhile_stays(store, mirror, push):
    manifest = push("needed")
    contents = RemoteContents(mirror)
    found = contents.garbage(NOW)
    assert [item.reference for item in found] == [manifest.reference]
    record(store, mirror, manifest)
    assert contents.collect(NOW, found) == []
    assert states(mirror) == {manifest.reference: "ok"}


def test_a_record_that_cannot_be_read_stops_a_collection(store, mirror, push, tmp_path):
    push("in the trash")
    gc(mirror)
    push("unused")
    contents = RemoteContents(mirror)
    (tmp_path / "mirror" / "runs" / "notes.txt").write_text("of somebody")
    assert RemoteContents(mirror).records()
    (tmp_path / "mirror" / "runs" / "20260101T000000.0-0.json").write_text("{")
    before = files(tmp_path)
    with pytest.raises(InvalidRecord, match="no record of a run"):
        gc(mirror)
    with pytest.raises(InvalidRecord, match="no record of a run"):
        contents.collect(NOW, [])
    assert files(tmp_path) == before


def test_on_s3_too(store, publish, s3, tmp_path):
    remote = Remote(f"s3://test/{uuid.uuid4().hex}/pre fix")
    record(store, remote, name="empty")
    manifest = publish(store, StepIdentity("kind", {}, {"value": "s3"}, {}, {}))
    remote.push(store, manifest)
    contents = RemoteContents(remote)
    contents.pin(manifest.reference)
    assert contents.damage(manifest.reference) == []
    assert contents.garbage(NOW) == []
    contents.unpin(manifest.reference)
    assert gc(remote) == [manifest.reference]
    assert remote.pull(ArtifactStore(tmp_path / "two"), "kind", manifest.key) is None
    gc(remote)
    assert not [name for name in remote.bucket.listed() if manifest.reference in name]
