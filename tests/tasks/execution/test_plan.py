"""What a plan says of every step, and why."""

import shutil
from datetime import UTC, datetime

import pytest

from data.artifacts.digests import DigestMemory
from data.artifacts.options import Options
from data.artifacts.records import read_records, write_record
from data.artifacts.remote import Remote
from data.artifacts.store import ArtifactStore
from data.errors import ArtifactMissing, InvalidConfig, StorageError
from tasks import catalogue
from tasks.execution import plan as plan_module
from tasks.execution.graph import Node, resolve
from tasks.execution.plan import check, plan, require_inputs
from tasks.kind import Kind


class Number(Options):
    value: int = 0

    @property
    def num_gpus(self):
        return self.value

    def check_without_data(self):
        if self.value == 13:
            raise InvalidConfig("13 brings bad luck")


@pytest.fixture(autouse=True)
def kinds(monkeypatch):
    monkeypatch.setitem(catalogue.KINDS, "number", Kind("number", "none", Number))
    copied = Kind("copy", "none", Number, {"number": "one"})
    monkeypatch.setitem(catalogue.KINDS, "copy", copied)


def graph_of(value):
    nodes = [
        Node("a number", "s", "number", Number(value=value)),
        Node("a copy", "s", "copy", Number(), {"number": "a number"}),
    ]
    return resolve(nodes, DigestMemory())


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path)


def make(store, graph):
    for step in graph:
        out = store.work(step.kind.name, step.identity.key) / "out"
        out.mkdir()
        (out / "file").write_text("content")
        store.publish(
            step.identity, out, summary={}, environment={}, seconds=0, peak_memory_bytes=0,
            created_at=datetime.now(UTC).isoformat(),
        )  # fmt: skip


def planned(store, graph, remote=None):
    found = plan(store, graph, read_records(store.root), remote)
    return [(item.state, item.why) for item in found]


def record(store, graph):
    write_record(store.root, "run", "x", {}, graph.recorded())


def test_what_is_there_is_a_hit_and_what_never_was_a_miss(store):
    assert planned(store, graph_of(1)) == [("miss", "never made")] * 2
    make(store, graph_of(1))
    assert planned(store, graph_of(1)) == [("hit", "")] * 2


def test_a_change_is_told_against_the_newest_run_and_through_the_inputs(store):
    for value in (1, 2):
        make(store, graph_of(value))
        record(store, graph_of(value))
    assert planned(store, graph_of(3)) == [("stale", "value: 2 → 3"), ("stale", "a number changed")]


def test_damage_and_absence_are_told_apart(store):
    graph = graph_of(1)
    make(store, graph)
    record(store, graph)
    (store.root / graph.find("a copy").identity.reference / "file").write_text("CONTENT")
    assert planned(store, graph) == [("hit", ""), ("stale", "missing or damaged: file")]
    (store.root / graph.find("a copy").identity.reference / "manifest.json").unlink()
    assert planned(store, graph)[1] == ("stale", "missing or damaged: manifest.json")
    shutil.rmtree(store.root / graph.find("a copy").identity.reference)
    assert planned(store, graph)[1] == ("miss", "never finished, or removed")


def test_what_cannot_be_read_is_neither_made_anew_nor_compared_with(store, unreadable):
    make(store, graph_of(1))
    unreadable.add(
        str(store.root / graph_of(1).find("a number").identity.reference / "manifest.json")
    )
    with pytest.raises(StorageError, match=r"Stale file handle: .*manifest\.json"):
        planned(store, graph_of(1))
    assert planned(store, graph_of(2))[0] == ("miss", "never made")


def test_a_change_that_was_recorded_and_not_run_is_still_told(store):
    make(store, graph_of(1))
    record(store, graph_of(1))
    record(store, graph_of(2))
    assert planned(store, graph_of(2))[0] == ("stale", "value: 1 → 2")


def test_steps_need_what_neither_is_there_nor_is_made_before(store):
    graph = graph_of(1)
    one, copied = graph
    require_inputs(store, graph)
    with pytest.raises(
        ArtifactMissing, match=r"'a copy' needs the artifact number/\w+ of 'a number'"
    ):
        require_inputs(store, [copied])
    make(store, [one])
    require_inputs(store, [copied])


def test_what_is_not_here_but_on_the_mirror_is_told_apart(store, tmp_path, caplog):
    folder = tmp_path / "mirror"
    remote, graph = Remote(folder.as_uri()), graph_of(1)
    assert planned(store, graph, remote) == [("miss", "never made")] * 2
    assert "planned without the remote" in caplog.text
    folder.mkdir()
    make(store, graph)
    first, second = (store.read(item.kind.name, item.identity.key) for item in graph)
    remote.push(store, first)
    file = store.root / first.reference / "file"
    file.write_text("CONTENT")
    shutil.rmtree(store.root / second.reference)
    there = ("remote", "a run pulls it")
    assert planned(store, graph, remote) == [there, ("miss", "never made")]
    file.write_text("content")
    assert planned(store, graph, remote)[0] == ("hit", "")


def test_more_gpus_than_there_are_is_said_before_anything_runs(store, monkeypatch):
    graph = graph_of(2)
    check(store, graph)  # without a GPU processes share the cores
    monkeypatch.setattr(plan_module, "visible_gpus", lambda: ("0",))
    with pytest.raises(InvalidConfig, match="'a number' is to have 2 GPUs and this machine has 1"):
        check(store, graph)
    check(store, graph_of(1))
    make(store, graph)
    check(store, graph)


def test_what_needs_no_data_is_said_before_there_are_any(store):
    with pytest.raises(InvalidConfig, match="13 brings bad luck"):
        check(store, graph_of(13))


def test_of_many_steps_that_changed_before_one_some_are_named(store, monkeypatch):
    make(store, graph_of(1))
    monkeypatch.setattr(plan_module, "_SOURCES_NAMED", 0)
    assert planned(store, graph_of(2))[1] == ("stale", "1 more before it changed")
