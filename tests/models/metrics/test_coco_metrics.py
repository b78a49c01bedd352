import contextlib
import io
import json

import numpy as np
import pyarrow as pa
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data.vocabulary.boxes import xyxy_to_xywh
from data.vocabulary.tables import BOX_COLUMNS, DETECTIONS, box_array
from models.metrics.coco_metrics import (
    coco_metrics,
    coco_statistics,
    detection_recall,
    read_truth,
    truth_boxes,
)


def noisy_detections(dataset, seed=0):
    rng = np.random.default_rng(seed)
    rows = dataset.objects.filter(dataset.objects["is_thing"])
    rows = rows.filter(pa.compute.equal(rows["split"], "train"))
    boxes = np.repeat(box_array(rows), 3, axis=0)
    boxes = boxes + rng.normal(0, 2, boxes.shape)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    labels = np.repeat(rows["category_id"].to_numpy(), 3)
    wrong = rng.random(len(labels)) < 0.3
    labels = np.where(wrong, rng.integers(1, 9, len(labels)), labels)
    return pa.table(
        {
            "split": ["train"] * len(labels),
            "image_id": np.repeat(rows["image_id"].to_numpy(), 3),
            "category_id": labels,
            "score": rng.random(len(labels)).astype(np.float32),
            "detector": ["noisy"] * len(labels),
            **{name: boxes[:, i].astype(np.float32) for i, name in enumerate(BOX_COLUMNS)},
        },
        schema=DETECTIONS,
    )


@pytest.mark.parametrize("image_ids", [None, [1, 2, 5]])
def test_metrics_equal_pycocotools(dataset, image_ids):
    detections = noisy_detections(dataset)
    path = dataset.instances_file("train")
    results = [
        {
            "image_id": row["image_id"],
            "category_id": row["category_id"],
            "score": row["score"],
            "bbox": xyxy_to_xywh(np.array([row[name] for name in BOX_COLUMNS])).tolist(),
        }
        for row in detections.to_pylist()
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        oracle = COCOeval(truth, truth.loadRes(results), "bbox")
        if image_ids:
            oracle.params.imgIds = image_ids
        oracle.evaluate()
        oracle.accumulate()
        oracle.summarize()
    known = read_truth(path, image_ids)
    statistics = coco_statistics(known, detections)
    np.testing.assert_allclose(statistics, oracle.stats, rtol=0, atol=1e-9)
    metrics = coco_metrics(known, detections)
    found = [-1 if value is None else value for value in metrics.as_row().values()]
    np.testing.assert_allclose(found, [*oracle.stats[:6], oracle.stats[8]], atol=1e-9)
    assert 0.05 < metrics.map50 < 0.95
    assert metrics.map_large is None  # in 64 pixels none is larger than 96 squared
    of_classes = oracle.eval["precision"][:, :, :, 0, -1]
    expected = [
        value.mean() if value.min() > -1 else None for value in of_classes.transpose(2, 0, 1)
    ]
    assert list(metrics.classes.values()) == pytest.approx(expected)
    assert list(metrics.classes) == [item["name"] for item in truth.dataset["categories"]]


def test_an_annotation_with_id_zero_counts_like_any_other(dataset, tmp_path):
    document = json.loads(dataset.instances_file("val").read_text())
    for number, item in enumerate(document["annotations"]):
        item["id"] = number
    path = tmp_path / "from_zero.json"
    path.write_text(json.dumps(document))
    found = perfect(dataset)
    assert coco_metrics(read_truth(path), found).map50 == pytest.approx(1.0)
    with pytest.warns(UserWarning, match="annotation id 0"):
        assert coco_statistics(document, found)[1] < 1  # what evaluators make of such a file


def test_no_detections_score_zero(dataset):
    truth = read_truth(dataset.instances_file("train"))
    assert coco_metrics(truth, DETECTIONS.empty_table()).map == 0


def perfect(dataset, **changes):
    rows = []
    truth = truth_boxes(read_truth(dataset.instances_file("val")))
    for image_id, (boxes, labels) in truth.items():
        for box, label in zip(boxes, labels, strict=True):
            row = {
                "split": "val",
                "image_id": image_id,
                "category_id": int(label),
                "score": 0.5,
                "detector": "d",
            }
            rows.append(row | dict(zip(BOX_COLUMNS, box.tolist(), strict=True)) | changes)
    return pa.Table.from_pylist(rows, schema=DETECTIONS)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, 1.0), ({"score": 0.3}, 1.0), ({"score": 0.29}, 0.0), ({"category_id": 99}, 0.0)],
)
def test_recall_counts_objects_found_with_class_score_and_place(dataset, changes, expected):
    truth = truth_boxes(read_truth(dataset.instances_file("val")))
    found = perfect(dataset, **changes)
    assert detection_recall(truth, found, score_threshold=float(np.float32(0.3))) == expected
