"""The store's commands, on a store with two runs of the smoke preset that no step has really made."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from data.artifacts.digests import DigestMemory
from data.artifacts.inventory import artifacts
from data.artifacts.records import read_records
from data.artifacts.store import ArtifactStore
from flows.command_line import app
from flows.request import Request
from flows.run_config import build_run
from flows.store_commands import _show_differences

LATER = {"train_detector": {"num_iterations": 9}}
"""Options of the second run."""

OLD = 100
"""Hours."""


@pytest.fixture(scope="module")
def made(tmp_path_factory, publish):
    """The store of two runs, and their graphs."""
    store = ArtifactStore(tmp_path_factory.mktemp("made"))
    graphs = []
    for options in ({}, LATER):
        request = Request("run", "smoke", build_run("smoke", options))
        graph = request.graph(DigestMemory())
        request.record(store, graph)
        for step in graph:
            if not store.has(step.kind.name, step.identity.key):
                publish(store, step.identity, OLD)
        graphs.append(graph)
    for path in (store.root / "runs").iterdir():
        document = json.loads(path.read_text())
        path.write_text(json.dumps({**document, "created_at": "2026-01-01T00:00:00+00:00"}))
    return store, graphs


@pytest.fixture
def store(made, tmp_path, monkeypatch):
    """A copy of it."""
    shutil.copytree(made[0].root, tmp_path / "root")
    monkeypatch.setenv("DETDIFFUSION_HOME", str(tmp_path / "root"))
    return ArtifactStore(tmp_path / "root")


@pytest.fixture
def graphs(made):
    return made[1]


def call(*arguments):
    """Exit status and output; what a user is told of a mistake."""
    result = CliRunner().invoke(app, [*map(str, arguments)])
    return result.exit_code, str(result.exception) if result.exit_code == 1 else result.output


def key_of(graph, name):
    return graph.find(name).identity.key


def test_ls_shows_artifacts_and_runs(store, graphs, publish):
    status, out = call("ls")
    assert status == 0
    references = {*graphs[0].steps, *graphs[1].steps}
    assert out.count(" ok ") == len(references)
    rows = json.loads(call("ls", "--json", "--sort", "kind")[1])
    assert [f"{row['kind']}/{row['key']}" for row in rows] == sorted(references)
    ingest = next(row for row in rows if row["kind"] == "ingest")
    assert (ingest["step"], len(ingest["runs"]), ingest["state"]) == ("ingest", 2, "ok")
    (store.root / graphs[0].find("report").identity.reference / "file").unlink()
    assert call("ls")[1].count(" damaged ") == 1
    runs = json.loads(call("ls", "--runs", "--json")[1])
    assert [run["id"] for run in runs] == [record.id for record in read_records(store.root)]
    assert [(run["present"], run["missing"]) for run in runs] == [(30, 0), (28, 0)]
    assert all(run["id"] in call("ls", "--runs")[1] for run in runs)
    assert json.loads(call("ls", "--unused", "--json")[1]) == []


def test_why_names_the_first_step_that_changed_since_the_nearest_artifact(store):
    option = ("--set", "train_detector.num_iterations=10")
    status, out = call("why", "label attributes", "smoke", *option)
    assert status == 0
    lines = out.splitlines()
    assert lines[0].endswith("stale: a run would make it")
    assert lines[2:] == ["  train detector: num_iterations: 9 → 10"]
    out = call("why", "train scorer", "smoke", *option)[1]
    assert "hit: a run takes it from the store" in out


def test_why_tells_never_made_damaged_and_collected_apart(store, graphs):
    label = graphs[1].find("label attributes").identity
    (store.root / label.reference / "file").write_text("CONTENT")
    options = ("smoke", "--set", "train_detector.num_iterations=9")
    assert "missing or damaged: file" in call("why", "label attributes", *options)[1]
    assert call("verify", "--repair")[0] == 1
    assert "damaged, moved away by verify on" in call("why", "label attributes", *options)[1]
    call("gc", "--apply", "--keep", 0)
    assert "collected by gc on" in call("why", "ingest", *options)[1]
    shutil.rmtree(store.root / ".trash")
    assert "never finished, or removed" in call("why", "ingest", *options)[1]
    assert "never made" in call("why", "ingest", "smoke", "--set", "ingest.scenes.seed=9")[1]


def test_why_of_a_key_says_what_keeps_it(store, graphs):
    label = graphs[0].find("label attributes").identity
    ids = [record.id for record in read_records(store.root)]
    out = call("why", label.key[:10])[1]
    assert f"kept by gc: one of the newest runs of smoke, {ids[1]}" in out
    assert f"run {ids[1]} of smoke: label attributes" in out
    assert ids[0] not in out
    assert f"input of train-generator/{key_of(graphs[0], 'train generator')[:8]}: attributes" in out
    assert "pinned" not in out
    call("pin", label.key)
    assert "kept by gc: pinned" in call("why", label.key)[1]


def test_diff_of_runs_and_of_artifacts(store, graphs):
    newest, oldest = [record.id for record in read_records(store.root)]
    result = CliRunner().invoke(app, ["diff", oldest, newest, "--json"])
    found = json.loads(result.output)
    assert result.exit_code == 1
    assert found["options"] == {"train_detector.num_iterations": [8, 9]}
    assert found["causes"]["train detector: option num_iterations"] == [8, 9]
    assert "ingest" not in found["steps"]
    keys = [key_of(graph, "label attributes") for graph in graphs]
    result = CliRunner().invoke(app, ["diff", *keys])
    assert result.exit_code == 1
    assert "option num_iterations: 8 → 9" in result.output
    assert call("diff", keys[0][:8], keys[0]) == (0, "")
    assert "give two of a sort" in call("diff", keys[0], newest)[1]


def test_decimals_are_told_apart_in_few_digits(capsys):
    pairs = {
        "a": (0.1 + 0.2, 0.2857142857142857),
        "b": (0.1 + 0.2, 0.3),
        "c": (None, 2 / 3),
        "d": (1, "x"),
    }
    _show_differences({"numbers": pairs})
    assert capsys.readouterr().out.splitlines() == [
        "numbers", "  a: 0.3 → 0.285714", "  b: 0.30000000000000004 → 0.3", "  c: None → 0.666667",
        "  d: 1 → 'x'",
    ]  # fmt: skip


def test_verify_names_damaged_files_and_deletes_nothing(store, graphs):
    assert call("verify")[0] == 0
    label = graphs[0].find("label attributes").identity
    file = store.root / label.reference / "file"
    file.write_text("CONTENT")
    assert call("verify", "--fast")[0] == 0
    assert call("verify", key_of(graphs[0], "ingest"))[0] == 0
    result = CliRunner().invoke(app, ["verify"])
    assert result.exit_code == 1
    assert f"damaged: {file}" in result.output
    parts = [call("verify", "--sample", f"{part}/3")[0] for part in (1, 2, 3)]
    assert sorted(parts) == [0, 0, 1]
    assert file.exists()
    assert call("verify", "--repair", label.key)[0] == 1
    assert not file.exists()
    assert call("verify")[0] == 0


def test_verify_names_what_cannot_be_read_and_moves_it_nowhere(store, graphs, unreadable):
    file = store.root / graphs[0].find("label attributes").identity.reference / "file"
    ingest = store.root / graphs[0].find("ingest").identity.reference / "file"
    ingest.write_text("CONTENT")
    there = len(artifacts(store.root))
    unreadable.add(str(file))
    result = CliRunner().invoke(app, ["verify", "--repair"])
    assert result.exit_code == 1
    assert f"not looked at: {file.parent.relative_to(store.root)}: the disk" in result.output
    assert f"{there - 1} artifacts looked at, 1 damaged\n1 moved" in result.output
    assert call("verify")[0] == 1
    unreadable.clear()
    assert call("verify")[0] == 0
    assert file.exists()
    assert not ingest.exists()


def test_gc_is_dry_unless_it_is_told_to(store, graphs, publish):
    first = {*graphs[0].steps} - {*graphs[1].steps}
    status, out = call("gc", "--keep", 1)
    assert status == 0
    assert "nothing was done" in out
    assert "label attributes" in out
    assert all(call("why", name.split("/")[1])[0] == 0 for name in first)
    out = call("gc", "--keep", 1, "--apply")[1]
    assert out.count(" yes ") == len(first)
    left = {f"{row['kind']}/{row['key']}" for row in json.loads(call("ls", "--json")[1])}
    assert left == {*graphs[1].steps}
    assert [row["missing"] for row in json.loads(call("ls", "--runs", "--json")[1])] == [
        0, len(first),
    ]  # fmt: skip


def test_gc_leaves_pins_and_what_is_young(store, graphs):
    oldest = [record.id for record in read_records(store.root)][-1]
    assert call("pin", oldest[:4])[0] == 1  # both begin so
    call("pin", oldest)
    assert "pin" in call("ls", "--runs")[1]
    nothing = f"moved to .trash of {store.root}: 0B"
    assert call("gc", "--keep", 1, "--apply")[1].startswith(nothing)
    assert call("unpin", oldest) == (0, f"no longer pinned: runs/{oldest}\n")
    assert call("gc", "--keep", 0, "--grace", "200h", "--apply")[1].startswith(nothing)
    label = graphs[0].find("label attributes").identity
    call("pin", label.key[:8])
    call("gc", "--keep", 0, "--apply")
    kinds = {row["kind"] for row in json.loads(call("ls", "--json")[1])}
    assert kinds == {"ingest", "train-detector", "detect", "label-attributes"}


def test_gc_stops_at_a_manifest_that_cannot_be_read(store, graphs):
    reference = graphs[0].find("label attributes").identity.reference
    (store.root / reference / "manifest.json").write_text("{")
    status, message = call("gc", "--keep", 0, "--apply")
    assert status == 1
    assert reference in message
    assert "verify --repair" in message
    assert not (store.root / ".trash").exists()
    assert call("verify", "--repair")[0] == 1
    assert call("gc", "--keep", 0, "--apply")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("why", "abcdefabcdef"), "nothing there begins with 'abcdefabcdef'"),
        (("why", "no such step", "smoke"), "no step is called 'no such step': `detdiffusion plan`"),
        (("diff", "", ""), "nothing there begins with ''"),
        (("diff", "2", "2"), "'2' is the beginning of"),
        (("pin", "zz"), "nothing there begins with 'zz'"),
        (("unpin", "zz"), "nothing is pinned"),
        (("gc", "--grace", "1 day"), "--grace '1 day': write a number with s, min, h, d or w"),
        (("gc", "--grace", "40000d"), "--grace '40000d' is more than a hundred years"),
        (("gc", "--free", "lots"), "--free 'lots': write a size, e.g. 50G"),
        (("verify", "--sample", "2/1"), "--sample '2/1': write N/T"),
        (("verify", "--sample", "0.1"), "--sample '0.1': write N/T"),
    ],
)
def test_a_mistake_is_said(store, arguments, message):
    status, said = call(*arguments)
    assert status == 1
    assert message in said


@pytest.mark.parametrize(
    "command", [("ls",), ("gc",), ("verify",), ("diff", "a", "b"), ("pin", "a")]
)
def test_a_folder_that_is_no_store_is_refused(monkeypatch, tmp_path, command):
    monkeypatch.setenv("DETDIFFUSION_HOME", str(tmp_path))
    status, said = call(*command)
    assert status == 1
    assert f"no artifact store at {tmp_path}" in said
    assert not list(tmp_path.iterdir())
