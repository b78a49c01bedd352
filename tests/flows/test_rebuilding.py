"""`verify --rebuild`, on a store in which a data set of the user's was ingested and looked at."""

import shutil
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from data.artifacts.digests import DigestMemory
from data.artifacts.manifest import Manifest
from data.artifacts.store import ArtifactStore
from data.progress import silent
from flows.command_line import app
from flows.request import Request
from flows.run_config import build_run
from tasks import catalogue
from tasks.execution.workshop import Workshop


@pytest.fixture(scope="module")
def made(ingested, tmp_path_factory):
    """The store, and the manifests of both artifacts."""
    store = ArtifactStore(tmp_path_factory.mktemp("made"))
    splits = {
        name: {
            "instances": ingested / f"instances_{name}.json",
            "images": ingested / "scenes" / name,
        }
        for name in ("train", "val")
    }
    request = Request("run", "smoke", build_run("smoke", {"ingest": splits}))
    graph = request.graph(DigestMemory())
    request.record(store, graph)
    workshop = Workshop(store, graph, num_cores=1)
    return store, {
        name: workshop.obtain(graph.find(name), silent)[0] for name in ("ingest", "features real")
    }


@pytest.fixture
def store(made, tmp_path, monkeypatch):
    """A copy of it."""
    shutil.copytree(made[0].root, tmp_path / "root")
    monkeypatch.setenv("DETDIFFUSION_HOME", str(tmp_path / "root"))
    return ArtifactStore(tmp_path / "root")


@pytest.fixture
def ingest(made):
    return made[1]["ingest"]


@pytest.fixture
def features(made):
    return made[1]["features real"]


def rebuild(*manifests):
    """Exit status and standard output."""
    keys = [manifest.key for manifest in manifests]
    result = CliRunner().invoke(app, ["verify", "--rebuild", *keys])
    return result.exit_code, result.stdout


def contents(store):
    """Every file of the store but of locks and of digests that are remembered."""
    return {
        path: path.read_bytes()
        for path in store.root.rglob("*")
        if path.is_file() and not path.relative_to(store.root).parts[0].startswith(".")
    }


def write(store, manifest: Manifest, name, content):
    """Put other content into a file of an artifact, and its digest into the manifest."""
    folder = store.root / manifest.reference
    (folder / name).write_bytes(content)
    out = store.work(manifest.kind, manifest.key) / "out"
    shutil.copytree(folder, out)
    facts = ("summary", "environment", "seconds", "peak_memory_bytes", "created_at")
    store.publish(manifest.identity, out, **{fact: getattr(manifest, fact) for fact in facts})


def test_a_step_makes_the_same_and_the_store_stays_as_it_was(store, ingest, features):
    before = contents(store)
    status, out = rebuild(ingest, features)
    assert out == (
        "2 artifacts looked at, 0 damaged\n"
        f"the same: {ingest.reference}\nthe same: {features.reference}\n"
    )
    assert status == 0
    assert contents(store) == before
    assert not list((store.root / ".work").glob("*/*"))


def test_what_differs_is_named_and_kept_until_it_is_made_anew_again(store, ingest):
    write(store, ingest, "card.md", b"another")
    before = contents(store)
    for _ in range(2):
        status, out = rebuild(ingest)
        assert status == 1
        work = store.root / ".work" / ingest.reference / "rebuild"
        assert f"different: {ingest.reference}, made anew in {work / ingest.reference}\n" in out
        assert out.count("card.md: ") == 1
        assert "parquet" not in out
        assert (work / ingest.reference / "card.md").is_file()
        assert contents(store) == before


def test_what_says_how_long_something_took_is_not_compared(store, ingest, monkeypatch):
    write(store, ingest, "card.md", b"another")
    kind = replace(catalogue.KINDS["ingest"], timed=frozenset({"card.md"}))
    monkeypatch.setitem(catalogue.KINDS, "ingest", kind)
    assert rebuild(ingest)[0] == 0


def test_damage_is_said_and_not_made_anew(store, ingest, features):
    (store.root / ingest.reference / "card.md").unlink()
    status, out = rebuild(ingest)
    assert (status, out.count("\n")) == (1, 2)
    assert "1 damaged" in out
    status, out = rebuild(features)
    assert status == 1
    assert "1 artifacts looked at, 0 damaged" in out
    assert f"not compared: {features.reference}: 'features real' needs the artifact" in out


def test_what_other_code_made_is_not_compared(store, ingest, features, monkeypatch):
    kind = replace(catalogue.KINDS["ingest"], versions={"step": 99})
    monkeypatch.setitem(catalogue.KINDS, "ingest", kind)
    status, out = rebuild(ingest, features)
    assert status == 1
    assert f"{ingest.reference}: the code that makes it has changed since, version of step " in out
    assert "→ 99" in out
    assert f"{features.reference}: the options of its newest run, " in out
    assert "lead to another now" in out
    assert not list((store.root / ".work").glob("*/*"))


def test_what_no_run_knows_or_somebody_works_on_is_not_compared(store, ingest, publish):
    with store.lock(ingest.kind, ingest.key):
        status, out = rebuild(ingest)
    assert status == 1
    assert "somebody works on it" in out
    alone = publish(store, replace(ingest.identity, options={"some": "other"}))
    status, out = rebuild(alone)
    assert status == 1
    assert "no run's record has the options" in out
