"""The graph of a run: what is shared, what a change makes anew, what is refused at once."""

import json
import shutil
import time

import pytest

from data.artifacts.digests import DigestMemory
from data.artifacts.store import ArtifactStore
from data.errors import InvalidConfig, InvalidDataset, InvalidModel, PipelineError
from flows.presets import merge
from flows.run_config import build_run
from flows.run_graph import STAGES, run_graph, stage_steps
from tasks.execution.plan import check


def graph_of(overrides=None, preset="smoke"):
    return run_graph(build_run(preset, overrides or {}), DigestMemory())


def new_steps(before, after):
    return {step.name for step in after if step.identity.reference not in before.steps}


def test_every_stage_has_steps_and_the_report_is_the_last():
    graph = graph_of()
    assert all(graph.of_stage(stage) for stage in STAGES)
    assert {stage for step in graph for stage in step.stages} == set(STAGES)
    assert [step.name for step in graph][-1] == "report"


def test_the_attribute_detector_and_the_arm_real_are_one_artifact():
    graph = graph_of()
    detector = graph.find("train detector")
    assert detector is graph.find("retrain real seed 0")
    assert detector.stages == ("train-detector", "retrain")
    assert graph.find("detect val") is graph.find("validate real seed 0")
    assert graph.find("retrain real+hard seed 0") is not detector


@pytest.mark.parametrize(
    ("change", "made"),
    [
        (
            {"retrain": {"seeds": [0, 1]}},
            {"retrain real seed 1", "validate real seed 1", "retrain real+hard seed 1",
             "validate real+hard seed 1"},
        ),
        (
            {"retrain": {"arms": ["real", "real+hard", "real+easy"]}},
            {"synthesize train easy", "retrain real+easy seed 0", "validate real+easy seed 0"},
        ),
        ({"extract_attributes": {"scoring": {"batch_size": 4}}}, None),
        ({"train_generator": {"probe": {"interval": 0}}}, None),
        ({"retrain": {"detector": {"num_workers": 3}}}, None),
        ({"synthesize": {"sampling": {"batch_size": 3}}}, None),
        ({"evaluate": {"recall_score_threshold": 0.4}}, set()),
    ],
)  # fmt: skip
def test_a_change_makes_just_the_steps_anew_that_it_concerns(change, made):
    changed = new_steps(graph_of(), graph_of(change))
    assert changed == (set() if made is None else made | {"measure", "report"})


def test_a_late_option_leaves_what_is_before_it():
    changed = new_steps(graph_of(), graph_of({"synthesize": {"sampling": {"guidance_scale": 3.0}}}))
    stages = {stage for name in changed for stage in graph_of().find(name).stages}
    assert stages == {"synthesize", "retrain", "evaluate"}
    assert "train detector" not in changed


def test_out_of_fold_detectors_are_steps_like_others():
    graph = graph_of({"extract_attributes": {"scoring": {"num_folds": 3}}})
    folds = [graph.find(f"train detector without fold {number} of 3") for number in range(3)]
    assert len({step.identity.key for step in folds}) == 3
    labels = graph.find("label attributes")
    assert {name for name in labels.inputs if name.startswith("detections/train")} == {
        f"detections/train fold {number} of 3" for number in range(3)
    }
    scored = labels.inputs["detections/train fold 1 of 3"]
    assert scored.inputs["detector"] is folds[1]
    assert scored.options.fold == folds[1].options.fold


@pytest.fixture
def results(tmp_path):
    for name in ("train", "val"):
        (tmp_path / f"{name}.json").write_text("[]")
    return {name: str(tmp_path / f"{name}.json") for name in ("train", "val")}


def test_own_detections_need_no_attribute_detector(results):
    other = {"retrain": {"detector": {"learning_rate": 0.02}}}
    own = merge(other, {"extract_attributes": {"scoring": {"results": results}}})
    graph = graph_of(own)
    names = {name for step in graph for name in step.names}
    assert "train detector" not in names
    with pytest.raises(InvalidConfig, match="the stage train-detector has nothing to do"):
        stage_steps(graph, "train-detector")
    assert "detector" not in graph.find("train generator").inputs
    changed = graph_of(merge(own, {"train_detector": {"num_iterations": 99}}))
    assert changed.steps.keys() == graph.steps.keys()


def test_an_own_detector_takes_the_place_of_the_trained_one(tmp_path):
    for name in ("config.py", "detector.json", "model.safetensors"):
        (tmp_path / name).write_text(name)
    graph = graph_of({"extract_attributes": {"scoring": {"detector": str(tmp_path)}}})
    own = graph.find("import detector")
    assert graph.find("detect train").inputs["detector"] is own
    assert graph.find("train generator").inputs["detector"] is own
    assert "train detector" not in {name for step in graph for name in step.names}


def coco(path):
    (path / "images").mkdir()
    for split in ("train", "val"):
        document = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
        (path / f"{split}.json").write_text(json.dumps(document))
    return {
        split: {"instances": str(path / f"{split}.json"), "images": str(path / "images")}
        for split in ("train", "val")
    }


def test_a_data_set_is_the_same_whatever_the_preset_says_of_scenes(tmp_path):
    given = {"ingest": coco(tmp_path)}
    smoke = graph_of(given).find("ingest").identity
    assert graph_of(given, "demo").find("ingest").identity == smoke


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"train_generator": {"base_model": "/no/such"}}, InvalidModel, "base_model '/no/such'"),
        ({"train_scorer": {"config": "mmdet::yolo/x.py"}}, InvalidConfig, "packaged with MMDetection"),
        (
            {"retrain": {"detector": {"pretrained": True, "overrides": {
                "model.backbone.init_cfg": {"type": "Pretrained", "checkpoint": "/no/w.pth"}}}}},
            InvalidConfig, "'/no/w.pth': there is no such file",
        ),
        (
            {"extract_attributes": {"scoring": {"detector": {
                "config": "mmdet::yolox/yolox_s_8xb8-300e_coco.py", "checkpoint": "no.pth"}}}},
            InvalidModel, "checkpoint no.pth",
        ),
        ({"extract_attributes": {"scoring": {"detector": "nowhere"}}}, InvalidModel, "nowhere"),
        (
            {"extract_attributes": {"scoring": {"results": {"train": "no.json", "val": "no.json"}}}},
            InvalidDataset, "results.train no.json",
        ),
        (
            {"evaluate": {"features": "inception", "inception_weights": "no.pth"}},
            InvalidModel, "inception_weights no.pth",
        ),
        ({"synthesize": {"class_policies": {"dragon": "easy"}}}, InvalidConfig, "dragon"),
        (
            {"synthesize": {"attribute_overrides": "no.parquet"}},
            InvalidConfig, "the arm real.origin alone",
        ),
        (
            {"synthesize": {"attribute_overrides": "no.parquet"},
             "retrain": {"arms": ["real+origin"]}},
            InvalidDataset, "no.parquet",
        ),
        ({"train_generator": {"optimizer": "adamw-8bit"}}, InvalidConfig, "pip install bitsandbytes"),
        ({"ingest": {"train": {"instances": "no.json", "images": "."}}}, InvalidDataset, "ingest.val"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_runs(overrides, error, message):
    started = time.process_time()
    with pytest.raises(error, match=message):
        graph_of(overrides)
    assert time.process_time() - started < 2


def test_a_coco_preset_without_data_is_refused():
    with pytest.raises(InvalidConfig, match=r"needs your data: give ingest\.train"):
        graph_of(preset="coco-512")


@pytest.mark.parametrize(
    "overrides",
    [
        {"train_generator": {"min_area_fraction": 0.99}},
        {"synthesize": {"min_things": 50, "max_things": 60}},
    ],
)
def test_a_rule_that_leaves_no_layout_is_refused_as_soon_as_the_tables_are_there(
    overrides, ingested, tmp_path
):
    store, graph = ArtifactStore(tmp_path), graph_of(overrides)
    check(store, graph)  # nothing is known yet
    identity = graph.find("ingest").identity
    out = store.work(identity.kind, identity.key) / "out"
    shutil.copytree(ingested, out)
    store.publish(
        identity, out, summary={}, environment={}, seconds=0, peak_memory_bytes=0, created_at=""
    )
    started = time.process_time()
    with pytest.raises(PipelineError, match="has a usable layout"):
        check(store, graph)
    assert time.process_time() - started < 2
    (store.root / identity.reference / "objects.parquet").write_text("damaged")
    check(store, graph)  # it will be made again first
