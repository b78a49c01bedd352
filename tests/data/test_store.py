import errno
import threading
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from data.errors import StorageError
from data.store import (
    ArtifactStore,
    RuntimeOnly,
    StageIdentity,
    explain_miss,
    keyed_options,
    storage_errors,
)


class Inner(BaseModel):
    size: int = 1
    workers: Annotated[int, RuntimeOnly] = 1


class Options(BaseModel):
    inner: Inner = Inner()
    name: str = "a"


def identity(**config):
    return StageIdentity("stage", 1, config or {"a": 1}, {"input": "k"})


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "root")


def publish(store, who=None):
    who = who or identity()
    out = store.work(who.stage, who.key) / "out"
    (out / "sub").mkdir(parents=True)
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
    assert store.lookup("stage", manifest.key) == manifest
    assert not (store.root / ".work" / "stage" / manifest.key).exists()


@pytest.mark.parametrize("change", ["damage", "delete", "truncate", "manifest", "no manifest"])
def test_a_damaged_artifact_is_a_miss_and_can_be_made_again(store, change):
    manifest = publish(store)
    folder = store.path("stage", manifest.key)
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
    assert store.lookup("stage", manifest.key) is None
    assert publish(store).files == manifest.files
    assert store.lookup("stage", manifest.key)


def test_runtime_options_are_not_part_of_the_key():
    assert keyed_options(Options(inner=Inner(workers=9))) == keyed_options(Options())
    assert keyed_options(Options(inner=Inner(size=9))) != keyed_options(Options())


@given(st.dictionaries(st.text(), st.integers() | st.text(), max_size=4))
def test_the_key_does_not_depend_on_the_order_of_options(options):
    backwards = dict(reversed(options.items()))
    first = StageIdentity("s", 1, options, {})
    assert first.key == StageIdentity("s", 1, backwards, {}).key
    assert first.key != StageIdentity("s", 2, options, {}).key


def test_a_miss_is_explained_by_what_changed(store):
    manifest = publish(store, identity(a=1, b={"c": 2}))
    changed = StageIdentity("stage", 1, {"a": 1, "b": {"c": 3}}, {"input": "other"})
    assert explain_miss(changed, manifest) == "b.c: 2 → 3; input input changed"
    assert explain_miss(changed, None) == "never made"
    assert explain_miss(identity(a=1, b={"c": 2}), manifest) == "missing or damaged files"


def test_the_latest_artifact_is_the_one_last_used(store):
    first, second = publish(store, identity(a=1)), publish(store, identity(a=2))
    assert store.latest("stage") is None
    store.mark_latest(second)
    store.mark_latest(first)
    assert store.latest("stage") == first
    assert (store.root / "stage" / "latest" / "sub" / "file.txt").exists()


def test_an_artifact_can_be_published_while_another_process_waits_for_its_lock(store):
    with store.lock("stage", identity().key):
        waiting = threading.Thread(
            target=lambda: store.lock("stage", identity().key).acquire(timeout=9)
        )
        waiting.start()
        publish(store)
    waiting.join()
    assert store.lookup("stage", identity().key)


def test_an_unwritable_root_is_one_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="DETDIFFUSION_HOME"):
        ArtifactStore(tmp_path / "file").work("stage", "key")


def test_a_full_disk_is_one_clear_error(tmp_path):
    with pytest.raises(StorageError, match="no space left"), storage_errors(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
