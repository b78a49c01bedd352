import json
from dataclasses import replace

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from data.coco import read_coco
from data.errors import InvalidModel
from data.store import ArtifactStore, StageIdentity
from flows.presets import PRESETS, merge
from models.config import AttributeStageConfig, DetectorConfig
from tasks.context import StepContext
from tasks.stages import foreign_files

pytestmark = pytest.mark.filterwarnings("ignore")  # MMDetection and MMEngine warn a lot

TINY = merge(
    PRESETS["demo"]["train_detector"],
    {"num_iterations": 2, "batch_size": 2, "overrides": {"model.test_cfg.score_thr": 0.0}},
)
ALL = {"score_threshold": 0.0}
"""A detector that has learned nothing is sure of nothing."""


@pytest.fixture(scope="module")
def root(dataset, tmp_path_factory):
    """Artifact root with a detector that was hardly trained."""
    from models.detector import train_detector
    from models.detector_config import CocoFolder

    store = ArtifactStore(tmp_path_factory.mktemp("root"))
    out = store.work("train-detector", "x") / "out"
    train_set = CocoFolder(dataset.instances_file("train"), dataset.image_folder("train"))
    config = DetectorConfig.model_validate(TINY)
    work = out.parent / "training"
    train_detector(config, [train_set], dataset.things, work, out / "detector")
    checkpoint = out / "iter_2.pth"
    checkpoint.write_bytes((work / "iter_2.pth").read_bytes())
    identity = StageIdentity("train-detector", 1, config.model_dump(mode="json"), {})
    publish(store, identity, out, {})
    return store.root


def publish(store, identity, out, summary):
    return store.publish(
        identity,
        out,
        summary=summary,
        environment={},
        seconds=0,
        peak_memory_bytes=0,
        created_at="1",
    )


@pytest.fixture
def context(dataset, root, tmp_path):
    """Makes contexts of the stage; its work folder is the same every time."""
    trained = next(item for item in (root / "train-detector").iterdir() if item.is_dir())

    def make(scoring, labelling=None, progress=lambda *report: None):
        config = {"scoring": ALL | scoring, "labelling": labelling or {}}
        (tmp_path / "work").mkdir(exist_ok=True)
        (tmp_path / "out").mkdir(exist_ok=True)
        return StepContext(
            config=AttributeStageConfig.model_validate(config),
            inputs={"ingest": dataset.folder, "train-detector": trained},
            out=tmp_path / "out",
            work=tmp_path / "work",
            key="key",
            root=tmp_path / "root",
            num_workers=1,
            progress=progress,
        )

    return make


def test_a_killed_scoring_goes_on_after_its_last_shard(context, dataset, monkeypatch):
    import tasks.detections
    from tasks.detections import obtain_detections

    class Killed(Exception):
        """Stands for the end of the process."""

    def stop(done, total, status):
        if done == 10:
            raise Killed

    monkeypatch.setattr(tasks.detections, "_SHARD_SIZE", 5)
    with pytest.raises(Killed):
        obtain_detections(context({}, progress=stop), dataset)
    shards = context({}).work / "shards"
    finished = {path.name: path.stat().st_mtime_ns for path in shards.iterdir()}
    assert sorted(finished) == ["0-0.parquet", "0-5.parquet"]
    table = obtain_detections(context({}), dataset)
    assert finished.items() <= {p.name: p.stat().st_mtime_ns for p in shards.iterdir()}.items()
    assert sorted(path.name for path in shards.iterdir()) == [
        "0-0.parquet", "0-10.parquet", "0-5.parquet", "1-0.parquet", "1-5.parquet",
    ]  # fmt: skip
    assert table.num_rows == sum(pq.read_metadata(path).num_rows for path in shards.iterdir()) > 0
    scores = table.filter(pc.field("image_id") == 3).sort_by("split")["score"].to_pylist()
    assert scores[:2] == sorted(scores[:2], reverse=True)


def test_labelling_options_alone_need_no_inference(context, dataset, tmp_path):
    from tasks.detections import detections_key, obtain_detections
    from tasks.extract_attributes import run

    first = context({})
    summary = run(first)
    made = pq.read_table(first.out / "detections.parquet")
    assert len((first.out / "card.md").read_text()) < 300_000
    assert "rank correlation with hard" in (first.out / "card.md").read_text()
    identity = StageIdentity("extract-attributes", 2, {}, {})
    manifest = publish(ArtifactStore(first.root), identity, first.out, summary)
    relabelled = context({}, {"iou_threshold": 0.75})
    folder = tmp_path / "fresh"
    folder.mkdir()
    again = obtain_detections(replace(relabelled, work=folder), dataset)
    assert again.equals(made)
    assert not list(folder.iterdir())
    assert detections_key(relabelled) != detections_key(context({"score_threshold": 0.02}))
    (ArtifactStore(first.root).path(manifest.stage, manifest.key) / "detections.parquet").unlink()
    assert obtain_detections(replace(relabelled, work=folder), dataset).num_rows
    assert list(folder.iterdir())


def test_no_image_is_scored_by_a_detector_that_saw_it(context, dataset):
    from tasks.detections import obtain_detections

    folds = context({"num_folds": 2})
    table = obtain_detections(folds, dataset)
    train = table.filter(pc.field("split") == "train")
    scored_by = dict(zip(train["image_id"].to_pylist(), train["detector"].to_pylist(), strict=True))
    assert set(scored_by) == {row["image_id"] for row in dataset.split_images("train")}
    for number in (0, 1):
        seen = {
            image.id for image in read_coco(folds.work / f"fold-{number}/instances.json").images
        }
        scored = {key for key, name in scored_by.items() if f"/fold-{number}-of-2" in name}
        assert len(scored) == 6
        assert not seen & scored
    val = table.filter(pc.field("split") == "val")
    assert val["detector"].unique().to_pylist() == [
        f"train-detector/{folds.inputs['train-detector'].name}"
    ]


def test_a_users_checkpoint_scores_as_the_detector_itself(context, dataset):
    from tasks.detections import obtain_detections

    trained = context({}).inputs["train-detector"]
    config = context({}).work / "mine.py"
    config.write_text((trained / "detector" / "config.py").read_text())
    given = {"config": str(config), "checkpoint": str(trained / "iter_2.pth")}
    own = obtain_detections(context({}), dataset)
    (context({}).work / "shards").rename(context({}).work / "own")
    table = obtain_detections(context({"detector": given}), dataset)
    assert table.drop_columns("detector").equals(own.drop_columns("detector"))
    assert table["detector"].unique().to_pylist()[0].startswith("iter_2.pth@")
    (context({}).work / "shards").rename(context({}).work / "theirs")
    folder = obtain_detections(context({"detector": str(trained / "detector")}), dataset)
    assert folder.drop_columns("detector").equals(own.drop_columns("detector"))
    wrong = context({}).work / "wrong.pth"
    torch.save({"state_dict": {"other": torch.zeros(1)}}, wrong)
    (context({}).work / "shards").rename(context({}).work / "folder")
    with pytest.raises(InvalidModel, match=r"wrong\.pth with config"):
        obtain_detections(context({"detector": given | {"checkpoint": str(wrong)}}), dataset)


def test_results_files_are_part_of_the_key(context, dataset, tmp_path):
    from tasks.detections import obtain_detections

    paths = {name: tmp_path / f"{name}.json" for name in ("train", "val")}
    entry = {"image_id": 3, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.8}
    for path in paths.values():
        path.write_text(json.dumps([entry, entry | {"score": 0.9}, entry | {"score": 0.001}]))
    given = context(
        {"score_threshold": 0.01, "results": {name: str(path) for name, path in paths.items()}}
    )
    table = obtain_detections(given, dataset)
    names = [name.partition("@")[0] for name in table["detector"].to_pylist()]
    assert names == ["results/train.json"] * 2 + ["results/val.json"] * 2
    assert table["score"].to_pylist() == pytest.approx([0.9, 0.8] * 2)
    before = foreign_files(given.config)
    paths["val"].write_text("[]")
    assert foreign_files(given.config).keys() == before.keys() == {
        "scoring.results.train", "scoring.results.val",
    }  # fmt: skip
    assert foreign_files(given.config) != before


def test_one_source_of_detections_is_allowed():
    with pytest.raises(ValueError, match="give one of"):
        AttributeStageConfig.model_validate({"scoring": {"num_folds": 2, "detector": "folder"}})
