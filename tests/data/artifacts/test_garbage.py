"""What a garbage collection leaves, and that it never takes what anything needs."""

import json
import os
import time
from datetime import UTC, datetime, timedelta

import pytest

from data.artifacts.garbage import cached, collect, garbage
from data.artifacts.identity import StepIdentity
from data.artifacts.inventory import artifacts, unfinished
from data.artifacts.records import RecordedStep, record_files, write_record
from data.artifacts.roots import Keep, pin, unpin
from data.artifacts.store import ArtifactStore
from data.artifacts.trash import removals
from data.errors import ArtifactMissing, InvalidManifest, InvalidRecord, StorageError

OLD = 100
"""Hours."""


def identity(value, *inputs, kind="kind"):
    sources = {f"input {i}": reference for i, reference in enumerate(inputs)}
    return StepIdentity(kind, {}, {"value": value}, {}, sources)


def record(root, references, name="demo", hours=OLD):
    """Leave the record of a run that was started some hours ago; returns its id."""
    steps = tuple(
        RecordedStep(names=(f"step {i}",), stages=("s",), kind=kind, key=key)
        for i, (kind, _, key) in enumerate(reference.partition("/") for reference in references)
    )
    known = set(record_files(root))
    write_record(root, "run", name, {}, steps)
    (path,) = set(record_files(root)) - known
    started = datetime.now(UTC) - timedelta(hours=hours)
    document = json.loads(path.read_text()) | {"created_at": started.isoformat()}
    path.write_text(json.dumps(document))
    return path.stem


def leave_work(store, reference, hours):
    """A work folder as a killed run leaves it."""
    folder = store.work(*reference.split("/"))
    (folder / "checkpoint").write_text("work")
    when = time.time() - 3600 * hours
    for path in (folder / "checkpoint", folder):
        os.utime(path, (when, when))


def collected(store, keep=None):
    keep = keep or Keep()
    return {item.path for item in collect(store, keep, garbage(store, keep))}


@pytest.fixture
def store(tmp_path):
    """A store in which one run is recorded, of nothing."""
    store = ArtifactStore(tmp_path / "root")
    record(store.root, [], "empty")
    return store


def make(publish, store, *values, hours=OLD):
    return [publish(store, identity(value), hours).reference for value in values]


def test_what_no_run_needs_goes_to_the_trash_and_is_deleted_by_the_next(publish, store):
    used, unused = make(publish, store, 1, 2)
    record(store.root, [used])
    assert [item.path for item in garbage(store, Keep())] == [unused]
    assert artifacts(store.root) == sorted([used, unused])
    assert collected(store) == {unused}
    assert artifacts(store.root) == [used]
    assert [path.read_text() for path in (store.root / ".trash").rglob("file")] == ["content"]
    assert removals(store.root)[unused].why == "collected by gc"
    assert collected(store) == set()
    assert not list((store.root / ".trash").rglob("file"))
    assert unused in removals(store.root)


def test_the_newest_runs_of_each_preset_are_kept_and_the_same_run_again_counts_once(publish, store):
    first, second, third, other = make(publish, store, 1, 2, 3, 4)
    record(store.root, [other], "smoke")
    for reference in (first, second, third, third, third):
        record(store.root, [reference])
    assert collected(store, Keep(runs=2)) == {first}
    assert collected(store, Keep(runs=1)) == {second}
    assert collected(store, Keep(runs=0)) == {third, other}


def test_runs_that_died_do_not_displace_finished_ones(publish, store):
    base, finished, before = make(publish, store, 1, 2, 3)
    others = make(publish, store, 4, 5, 6)
    record(store.root, [others[0], "kind/of a run that died before"])
    record(store.root, [base, before])
    record(store.root, [base, finished])
    for reference in (*others, others[2]):
        record(store.root, [base, reference, f"kind/that was never made of {reference}"])
    assert collected(store, Keep(runs=2)) == {others[0]}
    assert collected(store, Keep(runs=1)) == {before, others[1]}


def test_a_run_of_a_stage_alone_is_finished_by_what_is_of_that_stage(publish, store):
    finished, begun = make(publish, store, 1, 2)
    for references in ([finished, "kind/of a later stage"], [begun, "kind/not made"]):
        run = record(store.root, references)
        path = store.root / "runs" / f"{run}.json"
        document = json.loads(path.read_text()) | {"stage": "s"}
        if references[0] == finished:
            document["steps"][1]["stages"] = ["later"]
        path.write_text(json.dumps(document))
    assert collected(store, Keep(runs=1)) == set()


def test_inputs_are_kept_however_far_up(publish, store):
    base = publish(store, identity(1), OLD).reference
    middle = publish(store, identity(2, base), OLD).reference
    top = publish(store, identity(3, middle), OLD).reference
    make(publish, store, 4)
    pin(store.root, top)
    assert len(collected(store)) == 1
    assert set(artifacts(store.root)) == {base, middle, top}


def test_the_young_are_kept_and_so_is_what_they_are_made_from(publish, store):
    base = publish(store, identity(1), OLD).reference
    young = publish(store, identity(2, base), hours=23).reference
    old = publish(store, identity(3), hours=25).reference
    assert collected(store) == {old}
    assert collected(store, Keep(grace=timedelta(hours=22))) == {base, young}


def test_a_young_run_and_a_pinned_one_are_kept_beyond_their_number(publish, store):
    young, fixed, loose = make(publish, store, 1, 2, 3)
    record(store.root, [young], hours=1)
    pin(store.root, f"runs/{record(store.root, [fixed])}")
    record(store.root, [loose])
    assert collected(store, Keep(runs=0)) == {loose}


def test_a_held_lock_keeps_the_artifact_and_its_whole_run(publish, store):
    held, other, loose = make(publish, store, 1, 2, 3)
    record(store.root, [held, other])
    record(store.root, [loose])
    with store.lock(*held.split("/")):
        assert collected(store, Keep(runs=0)) == {loose}
    assert collected(store, Keep(runs=0)) == {held, other}


def test_work_folders_of_no_kept_run_go_when_they_are_old(store):
    kept, old, young, held = (identity(value).reference for value in range(4))
    record(store.root, [kept])
    for reference in (kept, old, held):
        leave_work(store, reference, OLD)
    leave_work(store, young, 1)
    with store.lock(*held.split("/")):
        assert collected(store) == {f".work/{old}"}
    assert set(unfinished(store.root)) == {kept, young, held}


def test_a_work_folder_beside_what_was_made_in_it_goes(publish, store):
    (used,) = make(publish, store, 1)
    record(store.root, [used])
    leave_work(store, used, hours=OLD)
    with store.lock(*used.split("/")):
        assert collected(store) == set()
    assert collected(store) == {f".work/{used}"}
    assert artifacts(store.root) == [used]


def test_runs_of_a_stage_alone_do_not_displace_whole_ones(publish, store):
    whole, *alone = make(publish, store, *range(5))
    record(store.root, [whole])
    for reference in alone:
        run = record(store.root, [reference])
        path = store.root / "runs" / f"{run}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"stage": "retrain"}))
    assert collected(store) == {alone[0]}


@pytest.mark.parametrize("change", ["record", "pin", "lock"])
def test_what_came_to_be_needed_meanwhile_stays(publish, store, change):
    needed, unused = make(publish, store, 1, 2)
    found = garbage(store, Keep())
    lock = store.lock(*needed.split("/"))
    match change:
        case "record":
            record(store.root, [needed])
        case "pin":
            pin(store.root, needed)
        case "lock":
            lock.acquire()
    assert [item.path for item in collect(store, Keep(), found)] == [unused]
    lock.release()


def test_enough_is_freed_by_the_oldest(publish, store):
    references = [publish(store, identity(n), OLD - n, "x" * 1000).reference for n in range(4)]
    size = garbage(store, Keep())[0].bytes
    found = [item.reference for item in garbage(store, Keep(), size + 1)]
    assert found == references[:2]
    assert garbage(store, Keep(), 0) == []


@pytest.mark.parametrize("text", [None, "{", "{}", "other"])
def test_a_manifest_that_cannot_be_read_stops_everything(publish, store, text):
    trash = make(publish, store, 3)
    collected(store)
    first, second = make(publish, store, 1, 2)
    found = garbage(store, Keep())
    path = store.root / first / "manifest.json"
    match text:
        case None:
            path.unlink()
        case "other":
            path.write_text((store.root / second / "manifest.json").read_text())
        case _:
            path.write_text(text)
    for attempt in (lambda: garbage(store, Keep()), lambda: collect(store, Keep(), found)):
        with pytest.raises(InvalidManifest, match=first):
            attempt()
    assert len(artifacts(store.root)) == 2
    assert list((store.root / ".trash").glob(f"*/{trash[0]}/file"))


def test_a_record_that_cannot_be_read_stops_everything(publish, store):
    make(publish, store, 1)
    (store.root / "runs" / "x.json").write_text("{")
    with pytest.raises(InvalidRecord, match="no record of a run"):
        garbage(store, Keep())


@pytest.mark.parametrize("place", ["pins", "pins/kind", "runs", ".locks", "manifest.json"])
def test_what_cannot_be_read_stops_everything(publish, store, unreadable, place):
    pinned, trash = make(publish, store, 1, 2)
    pin(store.root, pinned)
    found = garbage(store, Keep())
    assert [item.reference for item in found] == [trash]
    place = f"{pinned}/{place}" if place == "manifest.json" else place
    unreadable.add(f"{store.root}/{place}")
    for attempt in (lambda: garbage(store, Keep()), lambda: collect(store, Keep(), found)):
        with pytest.raises(StorageError, match="Stale file handle"):
            attempt()
    assert len(artifacts(store.root)) == 2


def test_a_pinned_run_without_record_stops_everything(publish, store):
    make(publish, store, 1)
    pin(store.root, "runs/gone")
    with pytest.raises(InvalidRecord, match="runs/gone is pinned"):
        garbage(store, Keep())
    unpin(store.root, "runs/gone")
    assert garbage(store, Keep())


def test_a_folder_that_no_run_was_recorded_in_is_refused(publish, tmp_path):
    store = ArtifactStore(tmp_path)
    make(publish, store, 1)
    with pytest.raises(ArtifactMissing, match="no artifact store at"):
        garbage(store, Keep())


def test_links_are_not_followed(publish, store, tmp_path):
    away = tmp_path / "away"
    reference = publish(ArtifactStore(away), identity(1), OLD).reference
    (store.root / "kind").mkdir()
    (store.root / reference).symlink_to(away / reference)
    publish(ArtifactStore(away), identity(3, kind="linked"), OLD)
    (store.root / "linked").symlink_to(away / "linked")
    (store.root / ".work").symlink_to(away)
    assert garbage(store, Keep()) == []
    own = publish(ArtifactStore(store.root), identity(2, kind="own"), OLD).reference
    (store.root / own / "inside").symlink_to(away)
    for _ in range(2):
        collected(store)
    assert not (store.root / own).exists()
    assert (away / reference / "file").read_text() == "content"


@pytest.mark.parametrize("place", ["kind", "artifact"])
def test_what_a_link_leads_to_keeps_what_it_is_made_from(publish, store, tmp_path, place):
    base, unused = make(publish, store, 1, 2)
    top = publish(store, identity(3, base, kind="top"), OLD).reference
    pin(store.root, top)
    link = store.root / ("top" if place == "kind" else top)
    link.rename(tmp_path / "another disk")
    link.symlink_to(tmp_path / "another disk")
    assert store.lookup(*top.split("/"))
    found = garbage(store, Keep())
    assert [item.reference for item in found] == [unused]
    (tmp_path / "another disk").rename(tmp_path / "not mounted")
    for attempt in (lambda: garbage(store, Keep()), lambda: collect(store, Keep(), found)):
        with pytest.raises(StorageError, match="leads nowhere, so nobody knows"):
            attempt()
    assert store.has(*base.split("/"))


def test_a_trash_that_is_a_link_or_in_use_is_refused(publish, store, tmp_path):
    make(publish, store, 1)
    with (
        store.lock("store", "trash"),
        pytest.raises(StorageError, match="another process moves artifacts"),
    ):
        collected(store)
    (store.root / ".trash").symlink_to(tmp_path)
    with pytest.raises(StorageError, match="is a link"):
        collected(store)
    assert len(artifacts(store.root)) == 1


def test_what_the_mirror_has_goes_the_longest_unused_first(store, publish):
    keep = Keep(grace=timedelta(0))
    old, used, young, alone = (
        publish(store, identity(name), hours).reference
        for name, hours in (("old", 30), ("used", 40), ("young", 20), ("alone", 50))
    )
    record(store.root, [used], hours=10)
    record(store.root, [old, alone], hours=35)
    pin(store.root, publish(store, identity("pinned", young), 60).reference)
    everything = set(artifacts(store.root))
    found = [item.reference for item in cached(store, keep, everything, 10**9)]
    assert found == [alone, old, used]
    assert [item.reference for item in cached(store, keep, everything, 1)] == [alone]
    assert [item.reference for item in cached(store, keep, {used}, 1)] == [used]
    asked = []
    found = cached(store, keep, everything, 1, lambda name: asked.append(name) or name != alone)
    assert [item.reference for item in found] == [old]
    assert asked == [alone, old]  # and no more than it takes


def test_what_is_taken_for_cached_is_deleted_at_once_unless_it_has_come_to_be_in_use(
    store, publish
):
    keep = Keep(grace=timedelta(0))
    free, held, unused = (publish(store, identity(name), OLD).reference for name in "abc")
    record(store.root, [free])
    record(store.root, [held])
    found = garbage(store, keep)
    assert [item.reference for item in found] == [unused]
    more = cached(store, keep, {free, held}, 10**9)
    with store.lock(*held.split("/")):
        moved = collect(store, keep, found, more)
    assert {item.reference for item in moved} == {free, unused}
    assert artifacts(store.root) == [held]
    trashed = [path for path in (store.root / ".trash").rglob("*") if path.name == "file"]
    assert [path.parent.name for path in trashed] == [unused.rpartition("/")[2]]
