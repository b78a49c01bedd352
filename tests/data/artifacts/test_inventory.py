"""Names of artifacts, and how a store stands."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data.artifacts.identity import StepIdentity
from data.artifacts.inventory import find, short_keys
from data.artifacts.listing import in_store, listed
from data.artifacts.records import RecordedStep, read_records, write_record
from data.artifacts.roots import pin, pinned
from data.artifacts.store import ArtifactStore
from data.artifacts.verification import damaged_files, remove_damaged, sampled
from data.errors import ArtifactMissing

KEYS = st.text("ab", min_size=32, max_size=32)


@given(st.sets(KEYS, max_size=8))
@example(set())
def test_short_keys_are_the_shortest_by_which_each_is_found(keys):
    references = {f"kind/{key}" for key in keys}
    for reference, short in short_keys(references).items():
        assert find(short, references) == find(f"kind/{short}", references) == reference
        assert len(short) >= 8
        if len(short) > 8:
            with pytest.raises(ArtifactMissing, match="give more of it"):
                find(short[:-1], references)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("c", "nothing there begins with 'c'"),
        ("other/a", "nothing there begins with 'other/a'"),
        ("", "nothing there begins"),
        ("a", "'a' is the beginning of 2 things, k/aa and k/ab"),
        ("2026", "'2026' is the beginning of 2 things"),
    ],
)
def test_what_is_unknown_or_ambiguous_is_said(text, message):
    with pytest.raises(ArtifactMissing, match=message):
        find(text, ["k/aa", "k/ab"], ["20261", "20262"])


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path)


def identity(value):
    return StepIdentity("kind", {}, {"value": value}, {}, {})


def test_a_listing_says_how_each_is_and_who_uses_it(publish, store):
    used, unused, damaged = (publish(store, identity(n), hours=n) for n in (3, 2, 1))
    unfinished = identity(0)
    (store.work("kind", unfinished.key) / "file").write_text("work")
    (store.root / damaged.reference / "file").write_text("shorter")
    (store.root / damaged.reference / "file").write_text("short")
    step = RecordedStep(names=("a step",), stages=("s",), kind="kind", key=used.key)
    record = write_record(store.root, "run", "demo", {}, (step,))
    pin(store.root, used.reference)
    found = listed(in_store(store), read_records(store.root), pinned(store.root))
    assert [(item.reference, item.state) for item in found] == [
        (unfinished.reference, "unfinished"),
        (damaged.reference, "damaged"),
        (unused.reference, "unused"),
        (used.reference, "ok"),
    ]
    assert (found[3].step, found[3].runs, found[3].pinned) == ("a step", (record,), True)
    assert found[0].bytes == len("work")
    assert found[3].bytes > len("content")


def test_parts_of_a_store_are_all_of_it_and_always_the_same():
    references = [f"kind/{identity(n).key}" for n in range(200)]
    parts = [sampled(references, part, 7) for part in range(1, 8)]
    assert sorted(item for part in parts for item in part) == sorted(references)
    assert all(parts)
    assert sampled(references, 3, 7) == parts[2]


def test_damage_is_named_and_repaired_by_moving_it_away(publish, store):
    whole, changed, unread = (publish(store, identity(n)).reference for n in range(3))
    (store.root / changed / "file").write_text("CONTENT")
    (store.root / unread / "manifest.json").write_text("{")
    assert damaged_files(store, whole) == []
    assert damaged_files(store, changed) == ["file"]
    assert damaged_files(store, changed, fast=True) == []
    assert damaged_files(store, unread, fast=True) == ["manifest.json"]
    with store.lock(*unread.split("/")):
        assert remove_damaged(store, [whole, changed, unread]) == [changed]
    assert store.read(*whole.split("/"))
    assert not (store.root / changed).exists()
    assert (store.root / unread).exists()
