"""Detectors and detections as steps: shards, folds, users' detectors and results."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from data.errors import InvalidModel
from data.vocabulary.tables import Dataset
from flows.presets import PRESETS, merge
from models.detector.given_options import (
    CheckpointConfig,
    DarknetConfig,
    DetectionOptions,
    DetectionsFile,
    DetectorFolder,
    DetectorSource,
)
from models.detector.options import DetectorTraining, Fold
from tasks.execution.context import StepContext

pytestmark = pytest.mark.filterwarnings("ignore")  # MMDetection and MMEngine warn a lot

TINY = merge(
    PRESETS["demo"]["train_detector"],
    {
        "num_epochs": 0,
        "num_iterations": 2,
        "batch_size": 2,
        "overrides": {"model.test_cfg.score_thr": 0.0},
    },
)
"""A detector that has learned nothing is sure of nothing."""


@pytest.fixture
def context(dataset, tmp_path):
    """Makes contexts of steps; a name's folders are the same every time."""

    def make(name, options, inputs=None, progress=lambda *report: None):
        work = tmp_path / "work" / name
        out = tmp_path / "kind" / name
        for folder in (work, out):
            folder.mkdir(parents=True, exist_ok=True)
        return StepContext(
            options=options,
            inputs={"ingest": dataset.folder, **(inputs or {})},
            out=out,
            work=work,
            key="key",
            root=tmp_path / "root",
            num_workers=1,
            progress=progress,
        )

    return make


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """Artifact of a detector that was hardly trained, with its checkpoint beside it."""
    from tasks.kinds.train_detector import run

    folder = tmp_path_factory.mktemp("train-detector") / "key"
    work = tmp_path_factory.mktemp("work")
    folder.mkdir()
    options = DetectorTraining.model_validate(TINY)
    run(
        StepContext(
            options, {"ingest": dataset.folder}, folder, work, "key", work, 1, lambda *report: None
        )
    )
    (folder / "iter_2.pth").write_bytes((work / "iter_2.pth").read_bytes())
    return folder


def detections(step):
    from tasks.kinds.detect import run

    summary = run(step)
    return pq.read_table(step.out / "detections.parquet"), summary


def test_a_killed_scoring_goes_on_after_its_last_shard(context, dataset, trained, monkeypatch):
    from tasks.kinds import detect

    class Killed(Exception):
        """Stands for the end of the process."""

    def stop(done, total, status):
        if done == 10:
            raise Killed

    monkeypatch.setattr(detect, "_SHARD_SIZE", 5)
    step = context("detect", DetectionOptions(split="train"), {"detector": trained})
    with pytest.raises(Killed):
        detections(replace(step, progress=stop))
    shards = step.work / "shards"
    finished = {path.name: path.stat().st_mtime_ns for path in shards.iterdir()}
    assert sorted(finished) == ["000000000", "000000005"]
    table, summary = detections(step)
    after = {path.name: path.stat().st_mtime_ns for path in shards.iterdir()}
    assert finished.items() <= after.items()
    assert len(after) == 3
    rows = [pq.read_metadata(path).num_rows for path in shards.glob("*/detections.parquet")]
    assert table.num_rows == sum(rows) > 0
    scores = table.filter(pc.field("image_id") == 3)["score"].to_pylist()
    assert scores == sorted(scores, reverse=True)
    assert summary == {}


def test_two_workers_find_what_one_does(context, trained, execution, monkeypatch):
    """Ray's, which look for a detector's parts in a process that was not forked from one that knows them."""
    from tasks.kinds import detect

    monkeypatch.setattr(detect, "_SHARD_SIZE", 5)
    made = []
    for name, workers in (("one", execution("local", 1)), ("two", execution("ray", 2))):
        options = DetectionOptions(split="train", execution=workers)
        step = context(name, options, {"detector": trained})
        detections(step)
        made.append((step.out / "detections.parquet").read_bytes())
    assert made[0] == made[1]


def test_validation_images_have_metrics_and_weak_detections_can_be_left_out(context, trained):
    step = context("val", DetectionOptions(), {"detector": trained})
    table, summary = detections(step)
    written = json.loads((step.out / "metrics.json").read_text())
    assert set(written.pop("classes")) == set(Dataset(step.inputs["ingest"]).things.values())
    assert summary["metrics"] == written
    assert summary["metrics"].keys() >= {"map", "map50", "map75"}
    limit = float(pc.quantile(table["score"], 0.5)[0].as_py())
    strong = context("strong", DetectionOptions(score_threshold=limit), {"detector": trained})
    kept, _ = detections(strong)
    assert kept.equals(table.filter(pc.field("score") >= limit))
    assert "train-detector" in table["detector"][0].as_py()


def test_no_image_is_scored_by_a_detector_that_saw_it(context, dataset, trained):
    from tasks.kinds.train_detector import run

    all_ids = {row["image_id"] for row in dataset.split_images("train")}
    scored = []
    for number in (0, 1):
        fold = Fold(number=number, of=2)
        training = DetectorTraining.model_validate({**TINY, "fold": fold})
        step = context(f"fold {number}", training)
        run(step)
        trained_on = json.loads((step.work / "instances_train.json").read_text())
        seen = {image["id"] for image in trained_on["images"]}
        options = DetectionOptions(split="train", fold=fold)
        table, _ = detections(context(f"scored {number}", options, {"detector": step.out}))
        found = set(table["image_id"].to_pylist())
        assert seen | found == all_ids
        assert not seen & found
        scored.append(found)
    assert not scored[0] & scored[1]


def test_a_users_detector_scores_as_the_detector_itself(context, trained):
    from tasks.kinds.import_detector import run

    own, _ = detections(context("own", DetectionOptions(), {"detector": trained}))
    config = trained.parent / "mine.py"
    config.write_text((trained / "detector" / "config.py").read_text())
    sources = {
        "checkpoint": CheckpointConfig(config=str(config), checkpoint=trained / "iter_2.pth"),
        "folder": DetectorFolder(folder=trained / "detector"),
    }
    for name, source in sources.items():
        step = context(name, DetectorSource(source=source))
        run(step)
        table, _ = detections(context(f"by {name}", DetectionOptions(), {"detector": step.out}))
        assert table.drop_columns("detector").equals(own.drop_columns("detector"))
        assert table["detector"].unique().to_pylist() == [f"kind/{name}"]
    wrong = trained.parent / "wrong.pth"
    torch.save({"state_dict": {"other": torch.zeros(1)}}, wrong)
    broken = CheckpointConfig(config=str(config), checkpoint=wrong)
    with pytest.raises(InvalidModel, match=r"wrong\.pth with config"):
        run(context("wrong", DetectorSource(source=broken)))


def test_a_users_detector_must_know_a_class_of_the_data_set(context, dataset, trained):
    from tasks.kinds.import_detector import run

    own = list(dataset.things.values())
    source = CheckpointConfig(
        config=str(trained / "detector" / "config.py"),
        checkpoint=trained / "iter_2.pth",
        classes=tuple(f"their {name}" for name in own),
    )
    with pytest.raises(InvalidModel, match=rf"iter_2.pth knows 'their {own[0]}'.*'{own[0]}'"):
        run(context("strange", DetectorSource(source=source)))
    mapped = source.model_copy(update={"class_names": {f"their {own[1]}": own[1]}})
    step = context("mapped", DetectorSource(source=mapped))
    run(step)
    categories = json.loads((step.out / "detector" / "detector.json").read_text())["categories"]
    ids = {name: category_id for category_id, name in dataset.things.items()}
    assert categories[1] == [ids[own[1]], own[1]]
    assert categories[0] == [-1, f"their {own[0]}"]


CENTRE = """[net]
width=32
height=32
[convolutional]
filters=7
size=1
stride=32
activation=linear
[yolo]
mask=0
anchors=16,16
classes=2
num=1
"""
"""A network of Darknet with one cell and one anchor, half as wide and high as the image."""


@pytest.fixture
def blind(tmp_path):
    """Files of a detector that finds the last of its two classes in the middle of any image."""
    if not hasattr(cv2.dnn, "readNetFromDarknet"):
        pytest.skip(f"OpenCV {cv2.__version__} does not read Darknet's format")
    paths = {name: tmp_path / f"blind.{name}" for name in ("cfg", "weights", "names")}
    paths["cfg"].write_text(CENTRE)
    header = np.array([0, 2, 5, 0, 0], "<i4").tobytes()
    biases, kernel = np.array([0, 0, 0, 0, 9, -9, 9], "<f4"), np.zeros(21, "<f4")
    paths["weights"].write_bytes(header + biases.tobytes() + kernel.tobytes())
    return paths


def test_a_detector_of_darknet_scores_as_any_other(context, dataset, blind):
    from tasks.kinds.import_detector import run

    category_id, name = list(dataset.things.items())[-1]
    blind["names"].write_text(f"unicorn\n{name}\n")
    step = context("darknet", DetectorSource(source=DarknetConfig(**blind)))
    run(step)
    again = context("again", DetectorSource(source=DetectorFolder(folder=step.out / "detector")))
    run(again)
    tables = []
    for imported in (step, again):
        options = DetectionOptions(batch_size=4)
        by = context(f"by {imported.out.name}", options, {"detector": imported.out})
        table, summary = detections(by)
        tables.append(table.drop_columns("detector"))
        assert summary["metrics"]["map"] >= 0
    assert tables[0].equals(tables[1])
    size = dataset.split_images("val")[0]["width"]
    for row in tables[0].to_pylist():
        assert row["category_id"] == category_id
        edges = [row[edge] for edge in ("x_min", "y_min", "x_max", "y_max")]
        assert edges == pytest.approx([size / 4, size / 4, 3 * size / 4, 3 * size / 4])
    assert tables[0]["image_id"].to_pylist() == [1, 2, 3, 4, 5, 6]


def test_a_detector_of_darknet_must_know_a_class_of_the_data_set(context, blind):
    from tasks.kinds.import_detector import run

    blind["names"].write_text("unicorn\ngriffin\n")
    source = DetectorSource(source=DarknetConfig(**blind))
    with pytest.raises(InvalidModel, match=r"blind\.weights knows 'unicorn', 'griffin', the data"):
        run(context("strange", source))


def test_detections_of_another_framework_are_a_table_like_ours(context, tmp_path):
    from tasks.kinds.import_detections import run

    path = tmp_path / "results.json"
    entry = {"image_id": 3, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.8}
    path.write_text(json.dumps([entry, entry | {"score": 0.9}, entry | {"image_id": 1}]))
    step = context("results", DetectionsFile(path=path, split="val"))
    summary = run(step)
    table = pq.read_table(step.out / "detections.parquet")
    assert table["image_id"].to_pylist() == [1, 3, 3]
    assert table["score"].to_pylist() == pytest.approx([0.8, 0.9, 0.8])
    assert table["detector"][0].as_py().startswith("results/results.json@")
    assert "map" in summary["metrics"]
    assert summary["warnings"] == []


def test_results_without_a_detection_are_told(context, tmp_path):
    from tasks.kinds.import_detections import run

    path = tmp_path / "results.json"
    path.write_text("[]")
    summary = run(context("no results", DetectionsFile(path=path, split="val")))
    assert summary["metrics"]["map"] == 0
    assert summary["warnings"] == [f"{path} has no detection in any of 6 images"]


def test_images_without_labels_are_scored_like_others(context, trained, tmp_path):
    from data.ingest.options import UnlabelledConfig
    from data.ingest.unlabelled import ingest_unlabelled

    images = tmp_path / "unlabelled"
    images.mkdir()
    ingest_unlabelled(UnlabelledConfig(num_scenes=3), images)
    options = DetectionOptions(split="unlabelled", score_threshold=0.0)
    given = context("unlabelled detections", options, {"ingest": images, "detector": trained})
    found, summary = detections(given)
    assert summary == {}
    assert set(found["split"].to_pylist()) == {"unlabelled"}
    assert set(found["image_id"].to_pylist()) == {1, 2, 3}
