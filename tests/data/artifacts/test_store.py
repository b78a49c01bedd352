import errno
import os
import threading

import numpy as np
import pytest
from safetensors.numpy import save_file

from data.artifacts import digests
from data.artifacts.digests import file_digest
from data.artifacts.files import storage_errors
from data.artifacts.identity import StepIdentity
from data.artifacts.store import ArtifactStore, default_root
from data.artifacts.verification import damaged_files, remove_damaged
from data.errors import InvalidConfig, StorageError


def identity(**options):
    return StepIdentity("kind", {"step": 1}, options or {"a": 1}, {}, {"input": "other/k"})


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "root")


def publish(store, who=None):
    who = who or identity()
    out = store.work(who.kind, who.key) / "out"
    (out / "sub").mkdir(parents=True, exist_ok=True)
    (out / "sub" / "file.txt").write_text("content")
    return store.publish(
        who,
        out,
        summary={},
        environment={},
        seconds=1.0,
        peak_memory_bytes=1,
        created_at="2026-01-01",
    )


def test_a_published_artifact_is_a_hit_and_its_work_is_gone(store):
    manifest = publish(store)
    assert store.lookup("kind", manifest.key) == manifest
    assert not (store.root / ".work" / "kind" / manifest.key).exists()


@pytest.mark.parametrize("change", [{"key": "0" * 32}, {"kind": "other"}, {"options": {"a": 2}}])
def test_a_manifest_that_says_it_is_of_another_artifact_is_none(store, change):
    manifest = publish(store)
    path = store.path("kind", manifest.key) / "manifest.json"
    path.write_text(manifest.model_copy(update=change).model_dump_json())
    assert store.read("kind", manifest.key) is None


def test_a_log_is_kept_beside_what_the_manifest_records(store):
    (store.work("kind", identity().key) / "log.txt").write_text("a warning")
    manifest = publish(store)
    log = store.path("kind", manifest.key) / "log.txt"
    assert log.read_text() == "a warning"
    assert manifest.files.keys() == {"sub/file.txt"}
    log.unlink()
    assert store.lookup("kind", manifest.key)


def test_the_folder_of_a_new_kind_outlives_a_crash_of_the_machine(store, monkeypatch):
    synced, fsync = [], os.fsync

    def noted(descriptor):
        fsync(descriptor)
        synced.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", noted)
    manifest = publish(store)
    artifact = store.path("kind", manifest.key)
    folders = [item.stat().st_ino for item in (artifact, artifact.parent, store.root)]
    assert synced[-3:] == folders


def test_a_file_that_its_maker_alone_could_read_is_published_as_others_are(store):
    out = store.work("kind", identity().key) / "out"
    out.mkdir()
    save_file({"weight": np.zeros(1)}, out / "model.safetensors")
    manifest = publish(store)
    modes = {path.name: path.stat().st_mode for path in store.path("kind", manifest.key).iterdir()}
    assert modes["model.safetensors"] == modes["manifest.json"]


@pytest.mark.parametrize("change", ["damage", "delete", "truncate", "manifest", "no manifest"])
def test_a_damaged_artifact_is_a_miss_and_can_be_made_again(store, change):
    manifest = publish(store)
    folder = store.path("kind", manifest.key)
    file = folder / "sub" / "file.txt"
    match change:
        case "damage":
            file.write_text("CONTENT")
        case "delete":
            file.unlink()
        case "truncate":
            file.write_text("")
        case "manifest":
            (folder / "manifest.json").write_text("{")
        case "no manifest":
            (folder / "manifest.json").unlink()
    assert store.lookup("kind", manifest.key) is None
    assert publish(store).files == manifest.files
    assert store.lookup("kind", manifest.key)


def test_no_flipped_bit_changes_what_a_hit_is_made_from_or_has_in_it(store):
    manifest = publish(store)
    path = store.path("kind", manifest.key) / "manifest.json"
    content = path.read_bytes()
    for place in range(8 * content.index(b'"summary"')):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        assert store.lookup("kind", manifest.key) in (None, manifest)


def test_what_has_size_and_time_that_it_had_is_read_again_only_when_all_is(store, monkeypatch):
    manifest = publish(store)
    file = store.root / manifest.reference / "sub" / "file.txt"
    long_ago = (1_700_000_000_000_000_000,) * 2
    os.utime(file, ns=long_ago)
    read = []
    monkeypatch.setattr(digests, "file_digest", lambda name: read.append(name) or file_digest(name))
    for _ in range(3):
        assert store.damage(manifest, remembered=True) == []
    assert read == [str(file)]
    file.write_text("c0ntent")
    assert store.damage(manifest, remembered=True) == ["sub/file.txt"]
    os.utime(file, ns=long_ago)  # as where a disk has lost a bit
    assert store.damage(manifest, remembered=True) == []
    assert store.damage(manifest) == ["sub/file.txt"]
    file.unlink()
    assert store.damage(manifest, remembered=True) == ["sub/file.txt"]


def test_a_folder_in_the_place_of_a_file_is_damage(store):
    manifest = publish(store)
    for name in ("sub/file.txt", "manifest.json"):
        path = store.root / manifest.reference / name
        path.unlink()
        path.mkdir()
        assert store.lookup("kind", manifest.key) is None


@pytest.mark.parametrize("name", ["manifest.json", "sub/file.txt"])
def test_of_what_cannot_be_read_nobody_says_that_it_is_damaged(store, unreadable, name):
    manifest = publish(store)
    unreadable.add(str(store.root / manifest.reference / name))
    message = rf"the disk under .* fails \(.*Stale file handle: '.*{name}'\): run again"
    for look in (
        lambda: store.lookup("kind", manifest.key),
        lambda: store.is_there("kind", manifest.key),
        lambda: damaged_files(store, manifest.reference),
        lambda: damaged_files(store, manifest.reference, fast=True),
        lambda: damaged_files(store, manifest.reference, remembered=True),
        lambda: remove_damaged(store, [manifest.reference]),
    ):
        with pytest.raises(StorageError, match=message):
            look()
    unreadable.clear()
    assert store.lookup("kind", manifest.key) == manifest


@pytest.mark.parametrize(
    ("home", "root"),
    [(None, "artifacts"), ("", "artifacts"), ("~/store", "home/store"), ("a", "a")],
)
def test_the_root_is_a_folder(tmp_path, monkeypatch, home, root):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DETDIFFUSION_HOME", raising=False)
    if home is not None:
        monkeypatch.setenv("DETDIFFUSION_HOME", home)
    assert default_root() == tmp_path / root


def test_an_address_is_no_root(monkeypatch):
    monkeypatch.setenv("DETDIFFUSION_HOME", "s3://somebody:SECRET@bucket/store")
    with pytest.raises(InvalidConfig, match="set DETDIFFUSION_REMOTE to the address") as error:
        default_root()
    assert "SECRET" not in str(error.value)


def test_a_lock_can_be_had_on_a_full_disk(store, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with store.lock_if_free("kind", "key") as is_free:
        assert is_free


def test_an_input_that_was_verified_is_not_read_again_but_looked_for(store):
    manifest = publish(store)
    folder = store.path("kind", manifest.key)
    assert store.is_there("kind", manifest.key)
    (folder / "sub" / "file.txt").write_text("CONTENT")
    assert store.is_there("kind", manifest.key)
    assert not ArtifactStore(store.root).is_there("kind", manifest.key)
    (folder / "sub" / "file.txt").unlink()
    assert not store.is_there("kind", manifest.key)


def test_ancestors_are_all_that_led_to_an_artifact(store):
    base = publish(store, StepIdentity("base", {}, {}, {}, {}))
    left = publish(store, StepIdentity("left", {}, {}, {}, {"b": base.reference}))
    right = publish(store, StepIdentity("right", {}, {}, {}, {"b": base.reference}))
    inputs = {"l": left.reference, "r": right.reference, "gone": "gone/0"}
    top = publish(store, StepIdentity("top", {}, {}, {}, inputs))
    assert store.ancestors(top) == {m.reference: m for m in (left, right, base)}


def test_an_artifact_can_be_published_while_another_process_waits_for_its_lock(store):
    with store.lock("kind", identity().key):
        waiting = threading.Thread(
            target=lambda: store.lock("kind", identity().key).acquire(timeout=9)
        )
        waiting.start()
        publish(store)
    waiting.join()
    assert store.lookup("kind", identity().key)


def test_an_unwritable_root_is_one_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="DETDIFFUSION_HOME"):
        ArtifactStore(tmp_path / "file").work("kind", "key")


def test_a_file_that_is_gone_is_named_and_no_matter_of_writing(tmp_path):
    message = r"ingest/0/objects\.parquet: no such file; run again"
    with pytest.raises(StorageError, match=message), storage_errors(tmp_path):
        (tmp_path / "ingest/0/objects.parquet").read_bytes()


def test_a_full_disk_is_one_clear_error(tmp_path):
    with pytest.raises(StorageError, match="no space left"), storage_errors(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_whether_a_lock_is_held_is_asked_without_taking_it(store):
    with store.lock("kind", "free"), store.lock("kind", "held"):
        pass
    folder = store.root / ".locks"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with store.lock("kind", "held") as lock:
        assert store.locked() == {"kind/held"}
        assert lock.is_locked
    assert store.locked() == set()
    assert (folder / "kind-free").read_bytes() == before["kind-free"]


def test_a_file_system_without_locks_is_named(store, monkeypatch):
    def none(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    with (
        pytest.raises(StorageError, match=r"locks do not work under .* \(No locks available\)"),
        store.lock_if_free("kind", "key"),
    ):
        pass


def test_numbers_without_end_come_back_from_a_manifest(store):
    manifest = publish(store, identity(overrides={"range": float("inf")}))
    assert store.lookup("kind", manifest.key) == manifest
