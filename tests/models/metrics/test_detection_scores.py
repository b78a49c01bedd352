"""Real and generated images are held against the same boxes."""

import json

import numpy as np
import pyarrow as pa
import pytest

from data.coco.image_sets import SyntheticSet
from data.vocabulary.tables import BOX_COLUMNS, DETECTIONS, write_table
from models.metrics.coco_metrics import detection_recall, read_truth, truth_boxes
from models.metrics.detection_scores import (
    count_hits,
    detection_score,
    recall_difference,
    score_intervals,
    scored_images,
)
from models.metrics.distances import jackknife_intervals
from models.metrics.interval import Interval

REPEATS = 2


@pytest.fixture
def synthetic(dataset, tmp_path):
    """Two images of each of three real layouts; the first box of each was not asked for."""
    real = read_truth(dataset.instances_file("val"))
    sources = [item["id"] for item in real["images"]][3:]
    images, annotations, rows = [], [], []
    for source in sources:
        asked_for = [item for item in real["annotations"] if item["image_id"] == source][1:]
        for repeat in range(REPEATS):
            key = len(images) + 1
            rows.append(
                {"image_id": key, "source_image_id": source, "repeat": repeat, "file_name": "x"}
            )
            images.append({"id": key, "file_name": "x", "width": 64, "height": 64})
            annotations += [{**item, "id": len(annotations), "image_id": key} for item in asked_for]
    found = SyntheticSet(tmp_path / "set")
    found.folder.mkdir()
    write_table(pa.Table.from_pylist(rows), found.provenance_file)
    document = {"images": images, "annotations": annotations, "categories": real["categories"]}
    found.instances.write_text(json.dumps(document))
    return found


def boxes_of(truth):
    return {key: boxes.tolist() for key, (boxes, _) in truth_boxes(truth).items()}


def test_the_layout_protocol_asks_both_for_what_was_drawn(dataset, synthetic):
    scored = scored_images("layout", dataset, synthetic)
    real, generated = boxes_of(scored.real), boxes_of(scored.generated)
    assert set(real) == set(synthetic.source_image_ids)
    assert len(generated) == REPEATS * len(real)
    for row in synthetic.provenance.to_pylist():
        assert generated[row["image_id"]] == real[row["source_image_id"]]
    of_file = boxes_of(read_truth(dataset.instances_file("val")))
    assert all(boxes == of_file[key][1:] for key, boxes in real.items())


def test_the_lama_protocol_asks_both_for_all_that_is_labelled(dataset, synthetic):
    scored = scored_images("lama", dataset, synthetic)
    real, generated = boxes_of(scored.real), boxes_of(scored.generated)
    of_file = boxes_of(read_truth(dataset.instances_file("val")))
    assert real == {key: of_file[key] for key in set(synthetic.source_image_ids)}
    for row in synthetic.provenance.to_pylist():
        assert generated[row["image_id"]] == of_file[row["source_image_id"]]


def detections(truth, score=0.5):
    rows = [
        {"split": "val", "image_id": image_id, "category_id": int(label), "score": score, "detector": "d"}
        | dict(zip(BOX_COLUMNS, box.tolist(), strict=True))
        for image_id, (boxes, labels) in truth_boxes(truth).items()
        for box, label in zip(boxes, labels, strict=True)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=DETECTIONS)


@pytest.mark.parametrize(
    ("protocol", "confidence", "score"),
    [("layout", 0.01, 1.0), ("lama", 0.01, 0.0), ("lama", 0.25, 1.0), ("layout", 0.0001, 0.0)],
)
def test_what_is_found_scores_alike_in_real_and_generated_images(
    dataset, synthetic, protocol, confidence, score
):
    scored = scored_images(protocol, dataset, synthetic)
    for truth in (scored.real, scored.generated):
        assert detection_score(
            protocol, truth, detections(truth, confidence)
        ).map50 == pytest.approx(score)


def test_what_was_not_asked_for_is_no_miss_of_the_layout(dataset, synthetic):
    layout, lama = (scored_images(name, dataset, synthetic) for name in ("layout", "lama"))
    found = detections(layout.real)
    assert detection_score("layout", layout.real, found).map50 == pytest.approx(1)
    assert detection_score("lama", lama.real, found).map50 < 1


LIMITS = {"score_threshold": 0.3, "iou_threshold": 0.5}


def found_in(truth, rng):
    """Detections with random scores of most boxes, some of them moved, and some of nothing."""
    rows = []
    for image_id, (boxes, labels) in truth_boxes(truth).items():
        for box, label in zip(boxes, labels, strict=True):
            side = (box[2:] - box[:2]).max()
            moved = box + side * rng.normal(0, rng.choice([0.02, 0.1, 0.4]), 4)
            rows.append(
                (image_id, int(label), rng.uniform(), *np.sort(moved.reshape(2, 2), axis=0).ravel())
            )
    kept = [row for row in rows if rng.uniform() < 0.8]
    columns = zip(
        ("image_id", "category_id", "score", *BOX_COLUMNS), zip(*kept, strict=True), strict=True
    )
    table = pa.table({name: list(values) for name, values in columns})
    names = {"split": ["val"] * len(kept), "detector": ["d"] * len(kept)}
    for name, values in names.items():
        table = table.append_column(name, pa.array(values))
    return table.select(DETECTIONS.names).cast(DETECTIONS)


def intervals_of(protocol, truth, found, clusters):
    return score_intervals(protocol, truth, found, count_hits(truth, found, clusters, **LIMITS))


@pytest.fixture
def many(dataset):
    """The truth of 12 images, and detections in them."""
    truth = read_truth(dataset.instances_file("train"))
    return truth, found_in(truth, np.random.default_rng(0))


@pytest.mark.parametrize("protocol", ["layout", "lama"])
def test_the_intervals_are_of_the_scores(many, protocol):
    truth, found = many
    each = {item["id"]: item["id"] for item in truth["images"]}
    intervals = intervals_of(protocol, truth, found, each)
    score = detection_score(protocol, truth, found)
    recall = detection_recall(truth_boxes(truth), found, **LIMITS)
    expected = (recall, score.map, score.map50, score.map75)
    assert [item.value for item in intervals.values()] == pytest.approx(expected, abs=1e-6)
    assert list(intervals) == ["recall", "map", "map50", "map75"]
    assert all(0.01 < item.high - item.value < 1 for item in intervals.values())


def test_the_interval_of_recall_is_the_jackknifes_of_a_ratio(many):
    truth, found = many
    boxes = truth_boxes(truth)
    ids = sorted(boxes)
    counts = np.array([len(boxes[key][0]) for key in ids])
    hits = np.array([detection_recall({k: boxes[k]}, found, **LIMITS) for k in ids]) * counts
    (expected,) = jackknife_intervals(
        lambda kept: [hits[kept].sum() / counts[kept].sum()], np.arange(len(ids))
    )
    each = {key: key for key in ids}
    interval = intervals_of("layout", truth, found, each)["recall"]
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))


def test_images_of_one_layout_count_together(many):
    """Each image twice: as many layouts as before, so the interval is as wide as before."""
    truth, found = many
    further = 1000

    def again(items, *names):
        return [*items, *({**item, **{n: item[n] + further for n in names}} for item in items)]

    twice = truth | {
        "images": again(truth["images"], "id"),
        "annotations": again(truth["annotations"], "id", "image_id"),
    }
    rows = found.to_pylist()
    more = pa.Table.from_pylist(again(rows, "image_id"), DETECTIONS)
    each = {item["id"]: item["id"] for item in truth["images"]}
    layouts = each | {key + further: key for key in each}
    one = intervals_of("layout", truth, found, each)["recall"]
    two = intervals_of("layout", twice, more, layouts)["recall"]
    assert (two.low, two.high) == pytest.approx((one.low, one.high))
    apart = intervals_of("layout", twice, more, {key: key for key in layouts})["recall"]
    assert apart.high - apart.low < 0.9 * (two.high - two.low)


def test_one_layout_or_none_with_a_box_has_no_interval(many):
    truth, found = many
    alike = {item["id"]: 1 for item in truth["images"]}
    assert intervals_of("layout", truth, found, alike) == {}
    each = {item["id"]: item["id"] for item in truth["images"]}
    empty = truth | {"annotations": []}
    assert intervals_of("layout", empty, found, each) == {}


def test_the_difference_of_recalls_is_paired_by_layout(many):
    truth, found = many
    each = {item["id"]: item["id"] for item in truth["images"]}
    all_found = count_hits(truth, found, each, **LIMITS)
    halved = count_hits(truth, found.slice(0, found.num_rows // 2), each, **LIMITS)
    assert recall_difference(all_found, all_found) == Interval(0, 0, 0)
    ids = np.arange(len(each))
    rates = [
        (hits.found, hits.boxes) for hits in (all_found, halved)
    ]  # sums of each image; the same images are left out of both
    (expected,) = jackknife_intervals(
        lambda kept: [
            rates[0][0][kept].sum() / rates[0][1][kept].sum()
            - rates[1][0][kept].sum() / rates[1][1][kept].sum()
        ],
        ids,
    )
    step = recall_difference(all_found, halved)
    assert step.value > 0
    assert (step.value, step.low, step.high) == pytest.approx(
        (expected.value, expected.low, expected.high)
    )
    alike = count_hits(truth, found, dict.fromkeys(each, 1), **LIMITS)
    assert recall_difference(alike, alike) is None
