"""The commands of the mirror, between two roots and a folder; and what `doctor` finds."""

import fcntl
import json
import shutil
import tempfile
from types import SimpleNamespace

import psutil
import pytest
from typer.testing import CliRunner

from data.artifacts.digests import DigestMemory
from data.artifacts.records import read_records
from data.artifacts.store import ArtifactStore
from flows.command_line import app
from flows.request import Request
from flows.run_config import build_run

CHANGED = {"train_detector": {"num_iterations": 9}}


@pytest.fixture(scope="module")
def made(tmp_path_factory, publish):
    """The store of two runs, and the graph of the newest."""
    store = ArtifactStore(tmp_path_factory.mktemp("made"))
    for options in (CHANGED, {}):
        request = Request("run", "smoke", build_run("smoke", options))
        graph = request.graph(DigestMemory())
        request.record(store, graph)
    for step in graph:
        publish(store, step.identity)
    return store, graph


@pytest.fixture
def call(made, tmp_path, monkeypatch):
    """Runs a command on a machine: its exit status, and its output with what a user is told of mistakes."""
    shutil.copytree(made[0].root, tmp_path / "one")
    (tmp_path / "mirror").mkdir()
    monkeypatch.setenv("DETDIFFUSION_REMOTE", (tmp_path / "mirror").as_uri())

    def call(machine, *arguments):
        monkeypatch.setenv("DETDIFFUSION_HOME", str(tmp_path / machine))
        result = CliRunner().invoke(app, [*map(str, arguments)])
        mistake = "" if isinstance(result.exception, SystemExit) else str(result.exception or "")
        return result.exit_code, result.output + mistake

    return call


def test_a_run_goes_from_one_machine_to_another(made, call, tmp_path):
    store, graph = made
    newest, oldest = [record.id for record in read_records(store.root)]
    assert call("two", "pull")[1].startswith("no run is on the remote: `detdiffusion push`")
    assert call("one", "push") == (0, f"{len(graph)} pushed\n")
    assert call("one", "push") == (0, f"{len(graph)} there already\n")
    (run,) = json.loads(call("two", "ls", "--remote", "--runs", "--json")[1])
    assert (run["id"], run["present"], run["missing"]) == (newest, len(graph), 0)
    assert call("two", "plan", "smoke")[1].count("a run pulls it") == len(graph)
    assert "a run takes it from the remote" in call("two", "why", "ingest", "smoke")[1]
    assert call("two", "pull") == (0, f"{len(graph)} pulled\n")
    assert call("two", "pull", newest) == (0, f"{len(graph)} there already\n")
    assert [record.id for record in read_records(tmp_path / "two")] == [newest]
    assert call("two", "verify") == (0, f"{len(graph)} artifacts looked at, 0 damaged\n")
    status, out = call("one", "push", oldest)
    assert status == 0
    assert " not made" in out
    assert call("two", "ls", "--remote", "--runs")[1].count("smoke") == 2


def test_ls_shows_what_only_the_remote_has(made, call, tmp_path):
    store, graph = made
    newest, oldest = [record.id for record in read_records(store.root)]
    call("one", "push", newest)
    scorer = graph.find("train scorer").identity
    assert call("two", "pull", scorer.key)[0] == 0
    (tmp_path / "two" / "runs" / f"{newest}.json").unlink()
    shutil.copy(tmp_path / "one" / "runs" / f"{oldest}.json", tmp_path / "two" / "runs")
    rows = json.loads(call("two", "ls", "--json")[1])
    states = {f"{row['kind']}/{row['key']}": row["state"] for row in rows}
    assert states == {**dict.fromkeys(graph.steps, "remote"), scorer.reference: "ok"}
    assert all(row["bytes"] and row["step"] for row in rows)
    runs = json.loads(call("two", "ls", "--runs", "--json")[1])
    assert [(run["id"], run["remote"]) for run in runs] == [(newest, True), (oldest, False)]
    assert " remote " in call("two", "ls", "--runs")[1]
    assert " remote " not in call("two", "ls", "--remote")[1]


def test_ls_goes_without_a_remote_that_cannot_be_used(call, tmp_path, monkeypatch):
    monkeypatch.setenv("DETDIFFUSION_REMOTE", (tmp_path / "none").as_uri())
    status, out = call("one", "ls")
    assert status == 0
    assert " ok " in out
    (note,) = [line for line in out.splitlines() if line.startswith("listed without the remote: ")]
    assert "there is no such bucket or folder" in note


def test_what_is_there_is_looked_at_as_in_a_store(made, call, tmp_path):
    store, graph = made
    newest, oldest = [record.id for record in read_records(store.root)]
    call("one", "push", newest)
    call("one", "push", oldest)
    rows = json.loads(call("two", "ls", "--remote", "--json")[1])
    assert {f"{row['kind']}/{row['key']}" for row in rows} == {*graph.steps}
    assert {row["state"] for row in rows} == {"ok"}
    label = graph.find("label attributes").identity
    out = call("two", "why", label.key, "--remote")[1]
    assert f"kept by gc: one of the newest runs of smoke, {newest}" in out
    assert "input of train-generator/" in out
    status, out = call("two", "diff", oldest, newest, "--remote")
    assert status == 1
    assert "train_detector.num_iterations: 9 → 8" in out
    assert call("two", "verify", "--remote") == (
        0,
        f"{len(graph)} artifacts looked at, 0 damaged\n",
    )
    file = next((tmp_path / "mirror" / label.reference).glob("*/file"))
    file.write_text("CONTENT")
    assert call("two", "verify", "--remote", "--fast")[0] == 0
    status, out = call("two", "verify", "--remote", "--repair", label.key)
    assert status == 1
    assert f"damaged: {file.as_uri()}" in out
    assert "1 taken away there: pushed by a machine that has them" in out
    assert "1 pushed" in call("one", "push", label.key)[1]
    assert call("two", "verify", "--remote")[0] == 0
    assert "--rebuild goes not with --remote" in call("two", "verify", "--remote", "--rebuild")[1]


def test_what_no_run_needs_goes_from_the_remote(made, call, tmp_path):
    _, graph = made
    call("one", "push")
    label = graph.find("label attributes").identity
    assert call("two", "pin", label.key, "--remote") == (0, f"pinned: {label.reference}\n")
    everything = ("gc", "--remote", "--keep", 0, "--grace", "0s")
    status, out = call("two", *everything)
    assert status == 0
    assert "nothing was done" in out
    moved = call("two", *everything, "--apply")[1].count(" yes ")
    rows = json.loads(call("two", "ls", "--remote", "--json")[1])
    kinds = {"ingest", "train-detector", "detect", "label-attributes"}
    assert {row["kind"] for row in rows} == kinds
    assert moved == len(graph) - len(rows)
    assert call("two", "unpin", label.key, "--remote")[0] == 0
    assert call("two", *everything, "--apply")[1].count(" yes ") == len(rows)
    assert (
        f"deleted from .trash of {(tmp_path / 'mirror').as_uri()}: 0B"
        not in call("two", *everything, "--apply")[1]
    )
    assert not [*(tmp_path / "mirror").glob("*/*/*/file")]


def test_a_store_gets_no_larger_than_its_limit_by_what_the_remote_has(made, call, tmp_path):
    _, graph = made
    one = ArtifactStore(tmp_path / "one")
    call("one", "push")
    scorer, label = (graph.find(name).identity for name in ("train scorer", "label attributes"))
    shutil.rmtree(tmp_path / "mirror" / scorer.reference)
    call("one", "pin", label.key)
    assert "the remote has it: 0B" in call("one", "gc", "--limit", "1G", "--apply")[1]
    limit = ("gc", "--limit", "1K", "--grace", "0s")
    assert call("one", *limit)[1].count("│") > len(graph)
    assert one.has(label.kind, label.key)
    status, out = call("one", *limit, "--apply")
    assert status == 0
    assert "over the limit stay: young, pinned, in use or not on a remote" in out
    assert not (one.root / ".trash").exists() or not [*(one.root / ".trash").rglob("file")]
    rows = json.loads(call("one", "ls", "--json")[1])
    left = [row for row in rows if row["state"] != "remote"]
    keys = {row["key"] for row in left}
    assert {scorer.key, label.key, graph.find("ingest").identity.key} <= keys
    status, out = call("one", "pull")
    assert f"{len(graph) - len(left)} pulled" in out
    assert f"{len(left)} there already" in out
    status, out = call("one", "gc", "--limit", "1G", "--free", "1G")
    assert (status, "--limit goes neither with --remote nor with --free" in out) == (1, True)
    assert "--limit 'lots': write a size" in call("one", "gc", "--limit", "lots")[1]


def test_the_only_good_copy_is_kept_whatever_the_limit(made, call, tmp_path):
    scorer = made[1].find("train scorer").identity
    call("one", "push")
    file = next((tmp_path / "mirror" / scorer.reference).glob("*/file"))
    file.write_text("CONTENT")
    status, out = call("one", "gc", "--limit", "1K", "--grace", "0s", "--apply")
    assert status == 0
    assert f"kept, for on the remote it is damaged: {file.as_uri()}" in out
    assert "the remote has it: 0B" not in out
    assert ArtifactStore(tmp_path / "one").lookup(scorer.kind, scorer.key)


def test_a_limit_without_a_remote_frees_what_nothing_needs(call, monkeypatch):
    monkeypatch.delenv("DETDIFFUSION_REMOTE")
    out = call("one", "gc", "--limit", "1K", "--grace", "0s")[1]
    assert "over the limit stay: young, pinned, in use or not on a remote" in out
    assert "--remote goes with a key alone" in call("one", "why", "ingest", "--remote")[1]


def test_with_an_artifact_comes_the_record_of_the_newest_run_that_has_it(made, call, tmp_path):
    store, graph = made
    newest, oldest = [record.id for record in read_records(store.root)]
    call("one", "push", oldest)
    call("one", "push", newest)
    assert call("two", "pull", graph.find("ingest").identity.key) == (0, "1 pulled\n")
    assert [record.id for record in read_records(tmp_path / "two")] == [newest]
    assert call("two", "verify") == (0, "1 artifacts looked at, 0 damaged\n")
    assert call("two", "ls")[0] == 0


def test_steps_and_keys_go_alone(made, call, tmp_path):
    _, graph = made
    step, other = graph.find("ingest").identity, graph.find("train scorer").identity
    assert call("one", "push", "ingest", other.key[:12]) == (0, "2 pushed\n")
    (run,) = json.loads(call("two", "ls", "--remote", "--runs", "--json")[1])
    assert (run["id"], run["present"]) == (next(read_records(made[0].root)).id, 2)
    out = call("two", "gc", "--remote", "--grace", "0s")[1]
    assert f"to be moved to .trash of {(tmp_path / 'mirror').as_uri()}: 0B" in out
    assert call("two", "pull", step.key[:12]) == (0, "1 pulled\n")
    assert ArtifactStore(tmp_path / "two").lookup(step.kind, step.key)
    assert not (tmp_path / "two" / other.reference).exists()
    assert "nothing there begins with 'zz'" in call("two", "pull", "zz")[1]
    with ArtifactStore(tmp_path / "two").lock(other.kind, other.key):
        assert call("two", "pull", other.key) == (0, "1 being made here\n")
    (tmp_path / "mirror" / other.reference / "manifest.json").unlink()
    assert call("two", "pull", other.key) == (0, "1 not on the remote\n")


def test_what_is_refused_is_named_and_the_rest_goes_on(made, call, tmp_path):
    _, graph = made
    ingest = graph.find("ingest").identity
    file = tmp_path / "one" / ingest.reference / "file"
    file.write_text("CONTENT")
    status, out = call("one", "push")
    assert status == 1
    assert f"refused: {file} is missing or damaged" in out
    assert f"{len(graph) - 1} pushed" in out
    assert "1 refused" in out
    file.write_text("content")
    call("one", "push")
    next((tmp_path / "mirror" / ingest.reference).glob("*/file")).write_text("CONTENT")
    status, out = call("two", "pull")
    assert status == 1
    assert "is missing or not what was put there" in out
    assert f"{len(graph) - 1} pulled" in out


def test_without_a_remote_the_commands_say_which_variable(call, monkeypatch):
    monkeypatch.delenv("DETDIFFUSION_REMOTE")
    for arguments in (("push",), ("pull",), ("ls", "--remote"), ("gc", "--remote")):
        status, out = call("one", *arguments)
        assert status == 1
        assert "no remote: set DETDIFFUSION_REMOTE, for instance to s3://bucket/prefix" in out
    status, out = call("one", "doctor")
    assert status == 0
    assert "none, DETDIFFUSION_REMOTE is not set" in out
    status, out = call("one", "doctor", "--remote")
    assert status == 1
    assert "fault  remote       no remote: set DETDIFFUSION_REMOTE" in out


def test_doctor_says_what_is_well_in_a_line_each(call):
    status, out = call("one", "doctor")
    assert status == 0
    lines = [line.split()[:2] for line in out.splitlines()]
    names = ("writable", "file", "locks", "space", "marker", "remote")
    assert lines == [["ok", name] for name in names]
    assert "2 runs are recorded" in out
    assert "of 32 that created one object at once one did" in call("one", "doctor", "--remote")[1]
    assert call("new", "doctor")[0] == 0


FAULTS = {
    "locks": (fcntl, "flock", lambda *arguments: None, "it was held twice"),
    "space": (
        shutil,
        "disk_usage",
        lambda path: SimpleNamespace(free=5e8),
        "0.5 GB are free under",
    ),
    "file system": (
        psutil,
        "disk_partitions",
        lambda **_: [
            SimpleNamespace(device="/dev/vda", mountpoint="/", fstype="ext4"),
            SimpleNamespace(
                device="mountpoint-s3", mountpoint=tempfile.gettempdir(), fstype="fuse"
            ),
        ],
        "is a bucket shown as a folder (fuse mountpoint-s3)",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_doctor_finds_a_fault_and_looks_on(call, monkeypatch, name):
    module, function, replacement, message = FAULTS[name]
    monkeypatch.setattr(module, function, replacement)
    status, out = call("one", "doctor")
    assert status == 1
    (line,) = [line for line in out.splitlines() if line.startswith("fault")]
    assert line.split("  ")[1].strip() == name
    assert message in line


@pytest.mark.parametrize("name", ["locks", "file system"])
@pytest.mark.parametrize("command", [("run", "smoke"), ("pull",)])
def test_a_root_that_can_be_no_store_is_refused_and_left_as_it_is(
    call, monkeypatch, name, command, tmp_path
):
    module, function, replacement, message = FAULTS[name]
    call("one", "push")
    monkeypatch.setattr(module, function, replacement)
    status, out = call("new", *command)
    assert status == 1
    assert message in out
    assert not any((tmp_path / "new").rglob("*"))


def test_doctor_finds_a_root_that_is_none(call, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photographs").mkdir()
    assert "photographs is one, and no run is recorded" in call("mine", "doctor")[1]
    (tmp_path / "file").touch()
    status, out = call("file", "doctor")
    assert status == 1
    assert "fault  writable     cannot read or write artifacts under" in out
    shutil.rmtree(tmp_path / "mirror")
    assert "fault  remote       file://" in call("one", "doctor")[1]
