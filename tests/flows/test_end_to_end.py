"""The smoke preset through a real Prefect server."""

import asyncio
import shutil
import time

import pytest

from data.artifacts.digests import DigestMemory
from data.artifacts.records import read_records
from data.artifacts.store import ArtifactStore
from flows.run_config import build_run
from flows.run_graph import run_graph
from tasks.prefect_ui import artifact_key

ENDED = ("Completed", "Cached", "Failed")

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore"),  # Prefect's server libraries warn a lot
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Artifact root, with a Prefect server behind it."""
    from prefect.testing.utilities import prefect_test_harness

    folder = tmp_path_factory.mktemp("root")
    with pytest.MonkeyPatch.context() as patch, prefect_test_harness(server_startup_timeout=120):
        patch.setenv("DETDIFFUSION_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def graph():
    """The graph of the smoke preset."""
    return run_graph(build_run("smoke", {}), DigestMemory())


@pytest.fixture(scope="module")
def cold(root):
    """State of a cold run."""
    return state_of("end_to_end", build_run("smoke", {}))


@pytest.fixture(scope="module")
def manifest(cold):
    """Manifest of the report at its end."""
    return cold.result()


def state_of(name, config):
    """Final state of a flow's run."""
    from flows import stages

    return getattr(stages, name)(config, return_state=True)


def task_runs(state, count):
    """Name and state of the `count` tasks of a flow's run that ended; the server learns of them late."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    wanted = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))

    async def read():
        async with get_client() as client:
            return await client.read_task_runs(flow_run_filter=wanted)

    deadline = time.monotonic() + 60
    while True:
        found = {run.name: run.state.name for run in asyncio.run(read()) if run.state}
        ended = {name: state for name, state in found.items() if state in ENDED}
        if len(ended) >= count:
            return ended
        assert time.monotonic() < deadline, found
        time.sleep(0.3)


def path_of(root, graph, name):
    return root / graph.find(name).identity.reference


def test_a_cold_run_makes_every_artifact_and_the_report(root, graph, cold, manifest):
    from typer.testing import CliRunner

    from flows.command_line import app
    from flows.results import flat_results, newest_reports

    store = ArtifactStore(root)
    assert all(store.lookup(step.kind.name, step.identity.key) for step in graph)
    assert task_runs(cold, len(graph)) == {step.name: "Completed" for step in graph}
    record, reports = newest_reports(store)
    assert reports == {"report": manifest}
    assert record.options["preset"] == "smoke"
    results = flat_results(store.manifest, record, reports)
    expected = {
        "detector_map50_real", "score_ap50_real", "score_ap50_origin", "score_ap50_easy",
        "score_ap50_hard", "recall_easy", "recall_origin", "recall_hard", "map_real",
        "map_real_plus_synthetic", "frechet_origin", "frechet_floor", "kid_origin", "seconds_total",
        "seconds_wall", "peak_memory_gb", "score_ap75_real", "score_ap75_hard", "map_real_hard",
        "gain_real_hard", "gain_real_hard_low", "gain_real_hard_high", "num_seeds",
        "recall_hard_by_detector",
    }  # fmt: skip
    assert expected <= results.keys()
    assert results["detector_map_real"] == results["map_real"]
    assert results["frechet_origin"] is None  # fewer images than features
    assert 0 < results["seconds_wall"] < results["seconds_total"]
    assert results["peak_memory_gb"] < 6
    page = (root / manifest.reference / "report.html").read_text()
    (answer,) = manifest.summary["answers"]
    assert answer in page
    shown = CliRunner(env={"DETDIFFUSION_HOME": str(root)}).invoke(app, ["report"]).output
    assert f"answer  {answer}\n" in shown
    assert page.count("data:image") > 4


def test_no_work_or_second_cache_is_left(root, graph, manifest):
    kinds = {step.kind.name for step in graph}
    assert {path.name for path in root.iterdir() if not path.name.startswith(".")} == {
        *kinds, "runs",
    }  # fmt: skip
    assert not [path for path in (root / ".work").rglob("*") if path.is_file()]


def test_the_synthetic_set_is_a_coco_data_set(root, graph, manifest):
    from PIL import Image
    from pycocotools.coco import COCO

    folder = path_of(root, graph, "synthesize val hard")
    coco = COCO(str(folder / "instances.json"))
    assert len(coco.imgs) == 8
    assert {item["attribute"] for item in coco.anns.values()} == {"hard"}
    for image in coco.imgs.values():
        with Image.open(folder / "images" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"]) == (64, 64)


def test_a_warm_run_is_all_hits_and_says_so(root, graph, manifest):
    records = len(list(read_records(root)))
    warm = state_of("end_to_end", build_run("smoke", {}))
    assert warm.result() == manifest
    assert task_runs(warm, len(graph)) == {step.name: "Cached" for step in graph}
    assert len(list(read_records(root))) == records + 1


def test_cards_are_artifacts_of_the_ui(graph, manifest):
    from prefect.client.orchestration import get_client

    async def read():
        async with get_client() as client:
            return await client.read_latest_artifacts()

    artifacts = {item.key: item for item in asyncio.run(read())}
    assert {"lineage", *(artifact_key(step.name) for step in graph)} <= artifacts.keys()
    assert "data:image/png" in artifacts["synthesize-val-hard"].data
    assert all(len(item.data) < 300_000 for item in artifacts.values() if item.type == "markdown")


def made(runs):
    """Names of the steps that were not there."""
    return {name for name, state in runs.items() if state == "Completed"}


def test_a_damaged_late_artifact_alone_is_made_again(root, graph, manifest):
    (root / manifest.reference / "report.html").unlink()
    state = state_of("end_to_end", build_run("smoke", {}))
    assert state.result().created_at > manifest.created_at
    assert (root / manifest.reference / "report.html").exists()
    assert made(task_runs(state, len(graph))) == {"report"}


def test_a_study_makes_what_is_new_in_its_runs_and_another_one_nothing_of_it(root, graph, manifest):
    from flows.studies import StudyConfig

    smoke = build_run("smoke", {})
    more = {"retrain": {"arms": ["real"], "seeds": [0, 1]}}
    strict = build_run("smoke", {"evaluate": {"recall_score_threshold": 0.5}, **more})
    first = state_of("study", StudyConfig(name="first", runs={"a": smoke, "b": strict}))
    runs = task_runs(first, len(graph) + 6)
    assert len(runs) == len(graph) + 6
    assert runs["a: train generator"] == "Cached"
    assert made(runs) == {
        "b: retrain real seed 1", "b: validate real seed 1", "b: measure", "b: compare", "b: report",
        "conclude",
    }  # fmt: skip
    question = {
        "name": "q",
        "text": "stricter finds less",
        "order": ["a: recall_real", "c: recall_real"],
    }
    config = {
        "name": "second",
        "runs": {"a": smoke, "c": strict},
        "asked": {"questions": [question]},
    }
    second = state_of("study", StudyConfig.model_validate(config))
    assert made(task_runs(second, len(graph) + 6)) == {"conclude"}
    assert second.result().summary["results"]["q"] >= 0
    assert "stricter finds less" in (root / second.result().reference / "study.html").read_text()
    assert next(read_records(root)).what == "study"


def test_a_single_stage_can_be_run_and_misses_its_inputs_by_name(
    root, manifest, tmp_path, monkeypatch
):
    from flows.stages import extract_attributes

    assert extract_attributes(build_run("smoke", {})).kind == "label-attributes"
    monkeypatch.setenv("DETDIFFUSION_HOME", str(tmp_path))
    state = extract_attributes(build_run("smoke", {}), return_state=True)
    assert state.is_failed()
    assert "run the stage ingest first" in state.message


ADDED = """
from pathlib import Path
from data.artifacts.options import Options
from tasks.execution.context import StepContext
from tasks.pages.cards import write_card

class Shout(Options):
    word: str = "hello"

def run(context):
    write_card(context.out, context.options.word.upper(), "of " + ", ".join(context.inputs))
    return {}
"""


def test_a_kind_that_is_added_runs_caches_and_shows(root, manifest, tmp_path, monkeypatch):
    """All that a new kind needs: a module, an entry in the catalogue, a node."""
    from prefect import flow
    from prefect.client.orchestration import get_client

    from tasks import catalogue
    from tasks.execution.graph import Node, resolve
    from tasks.execution.workshop import Workshop
    from tasks.kind import Kind
    from tasks.prefect_ui import obtain_artifact

    (tmp_path / "shout.py").write_text(ADDED)
    monkeypatch.syspath_prepend(tmp_path)
    import shout

    kind = Kind("shout", "shout", shout.Shout, preload=False)
    monkeypatch.setitem(catalogue.KINDS, "shout", kind)
    graph = resolve([Node("say hello", "evaluate", "shout", shout.Shout())], DigestMemory())

    @flow
    def say():
        workshop = Workshop(ArtifactStore(root), graph)
        return [obtain_artifact(workshop, "say hello", return_state=True).name]

    assert [say(), say()] == [["Completed"], ["Cached"]]

    async def read():
        async with get_client() as client:
            return await client.read_latest_artifacts()

    cards = {item.key: item.data for item in asyncio.run(read()) if item.type == "markdown"}
    assert cards["say-hello"].startswith("# HELLO")


def test_a_failed_step_leaves_those_alone_that_do_not_need_it(manifest):
    broken = {"overrides": {"model.backbone.type": "NoSuchNet"}}
    change = {"retrain": {"detector": broken, "arms": ["real", "real+origin"]}}
    state = state_of("end_to_end", build_run("smoke", change))
    assert state.is_failed()
    assert "NoSuchNet" in state.message
    states = task_runs(state, 26)
    failed = {name for name, state in states.items() if state == "Failed"}
    assert failed == {"retrain real seed 0", "retrain real+origin seed 0"}
    assert made(states) == {"synthesize train origin"}
    assert "report" not in states


@pytest.fixture(scope="module")
def with_holes(root, manifest):
    """State of a study whose second run has a detector that cannot be built; its record and reports."""
    from flows.results import newest_reports
    from flows.studies import StudyConfig

    broken = {"overrides": {"model.backbone.type": "NoSuchNet"}}
    other = {"retrain": {"others": {"broken": broken}}}
    runs = {"run/0": build_run("smoke", {}), "run/1": build_run("smoke", other)}
    orders = {"main": ("map_real_hard", "map_real"), "dying": ("broken_map_real_hard", "map_real")}
    questions = [
        {"name": name, "text": name, "order": [f"run: {number}" for number in order]}
        for name, order in orders.items()
    ]
    asked = StudyConfig(name="holes", runs=runs, asked={"questions": questions})
    return state_of("study", asked), *newest_reports(ArtifactStore(root), study="holes")


def test_a_training_that_died_is_a_hole_in_the_report(root, with_holes):
    state, record, reports = with_holes
    assert state.is_failed()
    assert "NoSuchNet" in state.message
    report = reports["run/1: report"]
    page = (root / report.reference / "report.html").read_text()
    missing = ["broken/real/0", "broken/real+hard/0"]
    assert all(f"No result of {place}" in page for place in missing)
    results = report.summary["results"]
    assert "map_real" in results
    assert not [name for name in results if "broken" in name]
    compared = [step for step in record.steps if "run/1: compare" in step.names]
    assert [
        ArtifactStore(root).read("compare", step.key).summary["missing"] for step in compared
    ] == [missing]


def test_a_training_that_died_in_a_study_leaves_its_question_to_the_other_seeds(root, with_holes):
    _, _, reports = with_holes
    results = reports["conclude"].summary["results"]
    assert (results["main_num_seeds"], results["dying_num_seeds"]) == (2, 0)
    assert results["dying_verdict"] == "not measured"
    page = (root / reports["conclude"].reference / "study.html").read_text()
    assert "run/1: 2 of its trainings or their detections failed" in page


def test_a_stage_finds_the_images_of_a_data_set_that_was_moved(root, tmp_path, graph, manifest):
    """Its ingest step is not obtained, and the run that made it looked elsewhere."""
    from flows.stages import extract_attributes, ingest

    shutil.copytree(path_of(root, graph, "ingest") / "scenes", tmp_path / "here")
    (tmp_path / "none.json").write_text("[]")

    def config(folder):
        splits = {
            name: {
                "instances": str(folder / f"annotations/instances_{name}.json"),
                "images": str(folder / name),
            }
            for name in ("train", "val")
        }
        results = {name: str(tmp_path / "none.json") for name in splits}
        scoring = {"scoring": {"results": results}}
        return build_run("smoke", {"ingest": splits, "extract_attributes": scoring})

    assert ingest(config(tmp_path / "here")).kind == "ingest"
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert extract_attributes(config(tmp_path / "there")).kind == "label-attributes"
