"""Arms compared: what is read of trained detectors, and whole images where the data set's are tiles."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.artifacts.manifest import Manifest
from data.coco.image_sets import real_images
from data.vocabulary.boxes import xywh_to_xyxy
from data.vocabulary.tables import BOX_COLUMNS, DETECTIONS
from models.metrics.arms import compare
from models.metrics.coco_metrics import read_truth
from models.metrics.options import ComparisonOptions
from tasks.execution.context import StepContext
from tasks.kinds.compare import _numbers, _result, run
from tasks.pages.detections import publish_detections


def in_tiles(dataset, is_found):
    """Detections of the objects that tiles show, where they are of images that `is_found` accepts."""
    sources = dict(
        zip(*(dataset.tiles[k].to_pylist() for k in ("image_id", "source_image_id")), strict=True)
    )
    return pa.Table.from_pylist(
        [
            {"split": "val", "image_id": item["image_id"], "category_id": item["category_id"],
             "score": 1.0, "detector": "d",
             **dict(zip(BOX_COLUMNS, xywh_to_xyxy(np.array(item["bbox"])), strict=True))}
            for item in read_truth(dataset.instances_file("val"))["annotations"]
            if is_found(sources[item["image_id"]])
        ],
        schema=DETECTIONS,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("scores", "end"),
    [
        ((0.54,), "it helps with this seed, others may say otherwise"),
        ((0.46,), "it costs with this seed, others may say otherwise"),
        ((0.51,), "cannot tell at this size; one seed does not say how many would"),
        ((0.54, 0.541), "it helps"),
        ((0.46, 0.459), "it costs"),
        ((0.51, 0.50, 0.52), "cannot tell at this size; about 10 seeds would tell"),
        ((0.49, 0.51), "cannot tell at this size, nor with a thousand seeds"),
    ],
)
def test_an_answer_promises_no_more_than_was_seen(rows, scores, end):
    (text,) = rows.comparison({"real": (0.5, 0.5, 0.5)[: len(scores)], "real+hard": scores}).answers
    assert text.rpartition(" mAP over ")[2].partition(": ")[2] == end


@pytest.fixture
def context(tiled, tmp_path):
    """Two arms: one detector finds everything, the other nothing in one image of three."""
    inputs = {"ingest": tiled.folder}
    for arm, is_found in (("real", lambda key: True), ("real+hard", lambda key: key != 12)):
        trained, found = (tmp_path / kind / arm for kind in ("train-detector", "detect"))
        for folder in (trained, found):
            folder.mkdir(parents=True)
        manifest = Manifest(
            kind="train-detector", key=arm, versions={}, options={"augmentation": "flip"}, foreign={},
            inputs={}, files={}, environment={}, seconds=1, peak_memory_bytes=1,
            summary={"images": {"real": 48}, "iterations": 10, "passes": 2.0},
            created_at="2026-01-01T00:00:00Z",
        )  # fmt: skip
        (trained / "manifest.json").write_text(manifest.model_dump_json())
        publish_detections(found, in_tiles(tiled, is_found), real_images(tiled, "val"), "val")
        inputs |= {f"trained/main/{arm}/0": trained, f"found/main/{arm}/0": found}
    options = ComparisonOptions(contrasts=(("real+hard", "real"),))
    (tmp_path / "out").mkdir()
    return StepContext(
        options, inputs, tmp_path / "out", tmp_path, "key", tmp_path, 1, lambda *report: None
    )


def test_seeds_that_a_gain_lacks_are_told():
    trained = SimpleNamespace(
        summary={"images": {"real": 9}, "passes": 1.0, "iterations": 9},
        options={"augmentation": "flip"},
    )
    results = [
        _result("main", arm, seed, trained, {"map": 0.5 + seed / 100})
        for arm, seeds in (("real", (0, 1, 2)), ("real+hard", (1, 2, 3)), ("real+easy", (0, 1, 2)))
        for seed in seeds
    ]
    found = _numbers(results, compare(results, (), None), dict.fromkeys(("real", "real+hard")))
    assert {name: value for name, value in found.items() if name.startswith("num_seeds")} == {
        "num_seeds": 4, "num_seeds_real": 3, "num_seeds_real_hard": 3,
        "num_seeds_gain_real_hard": 2, "num_seeds_gain_real_easy": 3,
    }  # fmt: skip


def test_arms_are_judged_on_whole_images(context, tiled):
    summary = run(context)
    results = summary["results"]
    assert results["map_real"] == 1
    assert 0.6 < results["map_real_hard"] < 0.75
    gain = results["gain_real_hard"]
    assert gain == pytest.approx(results["map_real_hard"] - 1)
    # A draw of 3 images has the one with misses in it 0 to 3 times; tiles would be drawn by themselves.
    assert (results["gain_real_hard_low"], results["gain_real_hard_high"]) == (-1, 0)
    assert "On 3 whole images, 12 tiles each." in (context.out / "card.md").read_text()


def test_detections_stay_as_found_and_their_card_says_what_is_judged(context, tiled):
    folder = context.inputs["found/main/real/0"]
    found = pq.read_table(folder / "detections.parquet")
    assert found.num_rows == in_tiles(tiled, lambda key: True).num_rows
    assert set(found["image_id"].to_pylist()) <= {
        row["image_id"] for row in tiled.split_images("val")
    }
    assert json.loads((folder / "metrics.json").read_text())["map"] == 1
    assert "COCO metrics of 3 whole images, 12 tiles each" in (folder / "card.md").read_text()


@pytest.mark.parametrize(
    ("summary", "passes", "numbers"),
    [
        ({"images": {"real": 600}, "passes": 2.0}, (2.0, None), (600, 0, 0)),
        (
            {"images": {"real": 600, "synthetic (hard)": 512}, "passes": 2.0},
            (2.0, 2.0), (600, 512, 0),
        ),
        (
            {"images": {"real": 600, "spare real": 512}, "passes": 2.0, "added passes": 0.5},
            (2.0, 0.5), (1112, 0, 0),
        ),
        ({"images": {"synthetic (hard)": 512}, "passes": 2.0}, (None, 2.0), (0, 512, 0)),
        (
            {"images": {"real": 600, "pseudo-labelled": 900}, "passes": 2.0},
            (2.0, 2.0), (600, 0, 900),
        ),
    ],
)  # fmt: skip
def test_passes_and_images_are_counted_by_where_images_and_labels_come_from(
    summary, passes, numbers
):
    trained = SimpleNamespace(
        summary={"iterations": 9, **summary}, options={"augmentation": "flip"}
    )
    found = _result("main", "arm", 0, trained, {"map": 0.5})
    assert (found.passes, found.added_passes) == passes
    assert (found.num_real, found.num_synthetic, found.num_pseudo_labelled) == numbers
